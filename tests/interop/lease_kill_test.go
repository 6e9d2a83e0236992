// Leases and their keys over `kill -9`: what was answered before is there after, and no lease ends before its time.
//
// A and B are killed again and again while clients grant, revoke, attach and detach; each client has leases and keys of
// its own, so its answers alone tell what must stand. SEED=n replays what is asked for, though the kills fall otherwise.
package interop

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	leaseKills       = 5
	leaseClients     = 6
	leaseKeys        = 8
	leasesInUse      = 4
	mortalsPerKill   = 4
	mortalKeys       = 3
	answersBeforeMax = 300
	keptSecs         = 20 // longer than a server is ever away
)

func TestLeasesOutliveKills(t *testing.T) {
	seed := fromEnv(t, "SEED", rand.Uint64()>>1)
	fmt.Printf("leases and kills: SEED=%d\n", seed)
	a, b := startPair(t)
	for _, s := range []*server{a, b} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			playLeaseKills(t, s, seed)
		})
	}
}

func playLeaseKills(t *testing.T, s *server, seed uint64) {
	ctx, client := patience(t), s.client(t, s.clientURL)
	random := rand.New(rand.NewPCG(seed, 0))
	var owners []*leaseOwner
	for n := range leaseClients {
		owners = append(owners, &leaseOwner{number: n, random: rand.New(rand.NewPCG(seed, uint64(n)+1)), known: newStanding()})
	}
	// A session holds a mutex all along, and another one waits for it.
	held := concurrency.NewMutex(newSession(t, client, keptSecs), "kill/mutex")
	must(t, held.Lock(ctx))
	waiting := concurrency.NewMutex(newSession(t, client, keptSecs), "kill/mutex")
	got := make(chan error, 1)
	go func() { got <- waiting.Lock(ctx) }()
	awaitCount(t, ctx, client, "kill/mutex/", 2)

	var mortals []*mortal
	for kill := range leaseKills {
		mortals = append(mortals, grantMortals(t, ctx, client, kill)...)
		var answers atomic.Int64
		enough, target := make(chan struct{}), int64(1+random.IntN(answersBeforeMax))
		var working sync.WaitGroup
		for _, owner := range owners {
			conn, err := s.dial()
			must(t, err)
			working.Go(func() {
				defer conn.Close()
				if err := owner.work(ctx, conn, func() {
					if answers.Add(1) == target {
						close(enough)
					}
				}); status.Code(err) != codes.Unavailable {
					t.Errorf("SEED=%d: client %d, %v: %v", seed, owner.number, owner.pending, err)
				}
			})
		}
		awaitDone(t, ctx, "answers", enough)
		killed := time.Now()
		must(t, s.restart())
		working.Wait()
		for _, owner := range owners {
			if err := owner.verify(ctx, client); err != nil {
				t.Errorf("SEED=%d: kill %d, client %d: %v", seed, kill+1, owner.number, err)
			}
		}
		for _, m := range mortals {
			m.verify(t, ctx, client, killed)
		}
	}
	select {
	case err := <-got:
		t.Errorf("two hold a mutex: %v", err)
	default:
	}
	must(t, held.Unlock(ctx))
	must(t, <-got)
	for _, m := range mortals {
		m.awaitEnd(t, ctx, client)
	}
	var asked int64
	for _, owner := range owners {
		asked += owner.asked
	}
	t.Logf("%d kills, %d requests, %d leases that ended by themselves", leaseKills, asked, len(mortals))
}

// standing is what stands of one client: the TTLs of its leases, and the value and lease of each of its keys.
type standing struct {
	leases map[int64]int64
	keys   map[string]leasedValue
}

type leasedValue struct {
	value string
	lease int64
}

func newStanding() standing {
	return standing{make(map[int64]int64), make(map[string]leasedValue)}
}

// leaseRequest changes what stands.
type leaseRequest struct {
	grant, revoke int64 // lease ids
	ttl           int64
	put, remove   string // keys
	leasedValue
}

// after is what stands when a request was carried out.
func (s standing) after(r leaseRequest) standing {
	s = standing{maps.Clone(s.leases), maps.Clone(s.keys)}
	switch {
	case r.grant != 0:
		s.leases[r.grant] = r.ttl
	case r.put != "":
		s.keys[r.put] = r.leasedValue
	case r.remove != "":
		delete(s.keys, r.remove)
	case r.revoke != 0:
		delete(s.leases, r.revoke)
		maps.DeleteFunc(s.keys, func(_ string, v leasedValue) bool { return v.lease == r.revoke })
	}
	return s
}

// leaseOwner is one client.
type leaseOwner struct {
	number int
	random *rand.Rand
	known  standing
	// pending was asked for and not answered: it was carried out, or not.
	pending leaseRequest
	asked   int64
	granted []int64 // also those revoked since
}

func (o *leaseOwner) key(n int) string { return fmt.Sprintf("kill/%d/%d", o.number, n) }

// work asks until the server is gone.
func (o *leaseOwner) work(ctx context.Context, conn *grpc.ClientConn, answered func()) error {
	kv, leases := pb.NewKVClient(conn), pb.NewLeaseClient(conn)
	for {
		o.asked++
		o.pending = o.request()
		var err error
		switch r := o.pending; {
		case r.grant != 0:
			_, err = leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: r.grant, TTL: r.ttl})
		case r.put != "":
			_, err = kv.Put(ctx, &pb.PutRequest{Key: []byte(r.put), Value: []byte(r.value), Lease: r.lease})
		case r.remove != "":
			_, err = kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte(r.remove)})
		case r.revoke != 0:
			_, err = leases.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: r.revoke})
		}
		if err != nil {
			return err
		}
		o.known = o.known.after(o.pending)
		o.pending = leaseRequest{}
		answered()
	}
}

func (o *leaseOwner) request() leaseRequest {
	var ids []int64
	for _, id := range o.granted {
		if o.known.leases[id] != 0 {
			ids = append(ids, id)
		}
	}
	key := o.key(o.random.IntN(leaseKeys))
	switch n := o.random.IntN(10); {
	case len(ids) == 0 || len(ids) < leasesInUse && n == 0:
		id := int64(o.number+1)<<32 | o.asked
		o.granted = append(o.granted, id)
		return leaseRequest{grant: id, ttl: longSecs + o.random.Int64N(longSecs)}
	case n == 1:
		return leaseRequest{revoke: ids[o.random.IntN(len(ids))]}
	case n == 2:
		return leaseRequest{remove: key}
	case n == 3:
		return leaseRequest{put: key, leasedValue: leasedValue{strconv.FormatInt(o.asked, 10), 0}}
	default:
		return leaseRequest{put: key, leasedValue: leasedValue{strconv.FormatInt(o.asked, 10), ids[o.random.IntN(len(ids))]}}
	}
}

// verify finds what the answers said, with or without what was pending, and goes on from there.
func (o *leaseOwner) verify(ctx context.Context, client *clientv3.Client) error {
	found, err := o.look(ctx, client)
	if err != nil {
		return err
	}
	with := o.known.after(o.pending)
	if !reflect.DeepEqual(found, o.known) && !reflect.DeepEqual(found, with) {
		return fmt.Errorf("there are %v\nnot %v\nnor, after %+v, %v", found, o.known, o.pending, with)
	}
	o.known, o.pending = found, leaseRequest{}
	return nil
}

// look reads what stands. A key's lease and a lease's keys must say the same.
func (o *leaseOwner) look(ctx context.Context, client *clientv3.Client) (standing, error) {
	found := newStanding()
	kvs, err := client.Get(ctx, fmt.Sprintf("kill/%d/", o.number), clientv3.WithPrefix())
	if err != nil {
		return found, err
	}
	attached := make(map[string]int64)
	for _, kv := range kvs.Kvs {
		found.keys[string(kv.Key)] = leasedValue{string(kv.Value), kv.Lease}
		if kv.Lease != 0 {
			attached[string(kv.Key)] = kv.Lease
		}
	}
	for _, id := range o.granted {
		lease, err := client.TimeToLive(ctx, clientv3.LeaseID(id), clientv3.WithAttachedKeys())
		if err != nil {
			return found, err
		}
		for _, key := range lease.Keys {
			if attached[string(key)] != id {
				return found, fmt.Errorf("%s is a key of lease %x, but says %x", key, id, attached[string(key)])
			}
			delete(attached, string(key))
		}
		if lease.TTL == -1 {
			continue
		}
		found.leases[id] = lease.GrantedTTL
		if lease.TTL < lease.GrantedTTL-settleSecs {
			return found, fmt.Errorf("lease %x has but %d s left of %d", id, lease.TTL, lease.GrantedTTL)
		}
	}
	if len(attached) > 0 {
		return found, fmt.Errorf("no lease has these keys: %v", attached)
	}
	return found, nil
}

// mortal is a lease that nobody renews.
type mortal struct {
	id       clientv3.LeaseID
	prefix   string
	since    int64
	mayEndAt time.Time
	ended    bool
}

func grantMortals(t *testing.T, ctx context.Context, client *clientv3.Client, kill int) (all []*mortal) {
	t.Helper()
	for n := range mortalsPerKill {
		m := &mortal{prefix: fmt.Sprintf("mortal/%d/%d/", kill, n), mayEndAt: time.Now().Add(shortSecs * time.Second)}
		granted, err := client.Grant(ctx, shortSecs)
		must(t, err)
		m.id = granted.ID
		for i := range mortalKeys {
			m.since = putWith(t, ctx, client, m.prefix+strconv.Itoa(i), m.id)
		}
		all = append(all, m)
	}
	return all
}

// verify demands, after a kill, that it stands with all its keys or has ended, once and for all and not too early. Every
// start gives a lease its whole time again.
func (m *mortal) verify(t *testing.T, ctx context.Context, client *clientv3.Client, killed time.Time) {
	t.Helper()
	keys := count(t, ctx, client, m.prefix)
	mayEndAt := killed.Add(shortSecs * time.Second)
	switch {
	case keys == mortalKeys && !m.ended:
		m.mayEndAt = mayEndAt
	case keys != 0:
		t.Errorf("lease %x has %d keys; it had ended: %t", m.id, keys, m.ended)
	case !m.ended && killed.Before(m.mayEndAt) && time.Now().Before(mayEndAt):
		t.Errorf("lease %x has ended %v after the kill", m.id, time.Since(killed))
	default:
		m.ended = true
	}
}

// awaitEnd demands that all its keys are deleted at one revision, in order, and that nothing is left of it.
func (m *mortal) awaitEnd(t *testing.T, ctx context.Context, client *clientv3.Client) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	response := <-client.Watch(ctx, m.prefix, clientv3.WithPrefix(), clientv3.WithRev(m.since+1))
	must(t, response.Err())
	if !m.ended && time.Now().Before(m.mayEndAt) {
		t.Errorf("lease %x has ended %v early", m.id, time.Until(m.mayEndAt))
	}
	if len(response.Events) != mortalKeys {
		t.Errorf("the end of lease %x: %v", m.id, response.Events)
	}
	for i, event := range response.Events {
		if event.Type != mvccpb.Event_DELETE || string(event.Kv.Key) != m.prefix+strconv.Itoa(i) || event.Kv.ModRevision != response.Events[0].Kv.ModRevision {
			t.Errorf("the end of lease %x: %v", m.id, response.Events)
		}
	}
	if remaining(t, ctx, client, m.id) != -1 {
		t.Errorf("lease %x is there without its keys", m.id)
	}
}
