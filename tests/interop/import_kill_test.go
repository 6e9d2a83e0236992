// An etcd that was killed: what its log has beyond its database is taken over as well.
//
// Clients change A at random until it is killed, and B is started on its data directory. Both then have the same history,
// A because it has read its log once more. A commits its database every 100 ms, so that a little is in the log alone; or
// only where it must, as for an alarm that is raised.
package interop

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const importClients = 6

// uncommitted keeps etcd from committing its database unless it must.
var uncommitted = []string{"--backend-batch-interval", "1h", "--backend-batch-limit", "100000000"}

func TestImportOfAKilledEtcd(t *testing.T) {
	seed := fromEnv(t, "SEED", rand.Uint64()>>1)
	fmt.Printf("import of a killed etcd: SEED=%d\n", seed)
	random := rand.New(rand.NewPCG(seed, 6))
	for round := range 4 {
		compacts, commits := round%2 == 0, round < 2
		t.Run(fmt.Sprintf("compacts=%v,commits=%v", compacts, commits), func(t *testing.T) {
			var flags []string
			if !commits {
				flags = uncommitted
			}
			a, b := newServer(t, "A", programA(), flags...), newServer(t, "B", programB())
			inBoth(t, a, b, (*server).start)
			a.loadAndKill(t, random, compacts, random.Int64N(500))
			must(t, a.startOnce())
			// What was refused then, for an alarm, is refused again; what ended by itself ends.
			a.load(t, random, compacts, random.Int64N(500), nil)
			a.letLeaseExpire(t)
			a.alarm(t, pb.AlarmRequest_ACTIVATE)
			a.load(t, random, compacts, random.Int64N(500), nil)
			if commits {
				a.alarm(t, pb.AlarmRequest_DEACTIVATE)
			}
			a.loadAndKill(t, random, compacts, random.Int64N(1000))

			b.kill()
			a.moveTo(t, b)
			before := files(t, filepath.Join(b.dataDir(), "member"))
			if err := b.startOnce(); err != nil {
				t.Fatalf("%v\n%s", err, b.lastLog())
			}
			b.importedEntries(t)
			// Twice, since etcd remembers hashes of what it has compacted until it stops.
			if err := errors.Join(a.startOnce(), a.stop(), a.startOnce()); err != nil {
				t.Fatal(err)
			}
			compareHistory(t, a, b)
			compareLeases(t, a, b)
			compareWatches(t, a, b)
			if err := b.stop(); err != nil {
				t.Fatal(err)
			}
			for name, content := range files(t, filepath.Join(b.dataDir(), "member")) {
				if before[name] != content {
					t.Errorf("%s is not as it was", name)
				}
			}
			run(t, b.program, "check", "--data-dir", b.dataDir())
		})
	}
}

// importedEntries is how much of the log the import says that it took over.
func (s *server) importedEntries(t *testing.T) {
	t.Helper()
	var entries int
	_, behind, found := strings.Cut(s.log.String(), `"log_entries":`)
	if _, err := fmt.Sscanf(behind, "%d", &entries); !found || err != nil {
		t.Errorf("it tells of no import")
	}
	t.Logf("%d entries come from the log", entries)
}

// loadAndKill lets clients change it until so many requests are answered, and kills it in the middle of others.
func (s *server) loadAndKill(t *testing.T, random *rand.Rand, compacts bool, answers int64) {
	t.Helper()
	s.load(t, random, compacts, answers, func() { must(t, s.process.Process.Kill()) })
	s.kill()
}

// load lets clients change it until so many requests are answered, and more until it is gone, if end ends it.
func (s *server) load(t *testing.T, random *rand.Rand, compacts bool, answers int64, end func()) {
	t.Helper()
	var answered atomic.Int64
	var working sync.WaitGroup
	enough := make(chan struct{})
	for range importClients {
		g := newGenerator(rand.New(rand.NewPCG(random.Uint64(), 7)), true, compacts)
		working.Go(func() {
			for end != nil || answered.Load() <= answers {
				request := g.request()
				// What is a revision to come for one client can be there by now.
				_, isCompaction := request.(*pb.CompactionRequest)
				if !changesData(request) || isCompaction && !compacts {
					continue
				}
				a := s.ask(request)
				if status.Code(a.err) == codes.Unavailable || status.Code(a.err) == codes.Canceled {
					break
				}
				g.learn(request, a)
				if answered.Add(1) == answers+1 {
					close(enough)
				}
			}
		})
	}
	<-enough
	if end != nil {
		end()
	}
	working.Wait()
}

// letLeaseExpire grants a short lease with keys, and waits until they are gone.
func (s *server) letLeaseExpire(t *testing.T) {
	t.Helper()
	ctx, client := patience(t), s.client(t, s.clientURL)
	lease, err := client.Grant(ctx, 1)
	must(t, err)
	putWith(t, ctx, client, "mortal/b", lease.ID)
	first := putWith(t, ctx, client, "mortal/a", lease.ID)
	for answer := range client.Watch(ctx, "mortal/", clientv3.WithPrefix(), clientv3.WithRev(first+1)) {
		must(t, answer.Err())
		if len(answer.Events) == 2 {
			return
		}
	}
	t.Fatal("the lease's keys do not go")
}

// alarm raises an alarm of the quota, or takes it back.
func (s *server) alarm(t *testing.T, action pb.AlarmRequest_AlarmAction) {
	t.Helper()
	request := &pb.AlarmRequest{Action: action, MemberID: s.memberID, Alarm: pb.AlarmType_NOSPACE}
	_, err := pb.NewMaintenanceClient(s.conn).Alarm(patience(t), request)
	must(t, err)
}

// compareWatches compares what watchers of all keys are told from the first revision that is left.
func compareWatches(t *testing.T, a, b *server) {
	t.Helper()
	newest := b.hashKV(t, 0)
	var told [2][]*clientv3.Event
	for i, s := range []*server{a, b} {
		ctx, cancel := context.WithCancel(patience(t))
		first := max(newest.CompactRevision, 1)
		for answer := range s.client(t, s.clientURL).Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(first), clientv3.WithPrevKV()) {
			must(t, answer.Err())
			told[i] = append(told[i], answer.Events...)
			if last := told[i][len(told[i])-1]; last.Kv.ModRevision == newest.HashRevision {
				break
			}
		}
		cancel()
	}
	same := func(a, b *clientv3.Event) bool {
		return a.Type == b.Type && proto.Equal(a.Kv, b.Kv) && proto.Equal(a.PrevKv, b.PrevKv)
	}
	if !slices.EqualFunc(told[0], told[1], same) {
		t.Errorf("watchers are told %d events by A, %d by B, and not the same", len(told[0]), len(told[1]))
	}
}

// TestImportWithUsers has all that authentication knows: what is off or on stays so on the way to B and back to A.
func TestImportWithUsers(t *testing.T) {
	for _, enabled := range []bool{false, true} {
		t.Run(fmt.Sprintf("enabled=%v", enabled), func(t *testing.T) {
			a, b := startPair(t)
			ctl := func(args ...string) string {
				return string(run(t, etcdctl, append([]string{"--endpoints", a.clientURL, "--user", "root:secret"}, args...)...))
			}
			a.must(t, &pb.PutRequest{Key: []byte("k"), Value: []byte("v")})
			for _, words := range [][]string{
				{"user", "add", "root:secret"}, {"user", "grant-role", "root", "root"}, {"user", "add", "alice:pw"},
				{"user", "add", "bob", "--no-password"}, {"role", "add", "reader"}, {"role", "grant-permission", "reader", "read", "k", "l"},
				{"role", "grant-permission", "reader", "readwrite", "x", "--from-key"}, {"user", "grant-role", "alice", "reader"},
			} {
				ctl(words...)
			}
			if enabled {
				ctl("auth", "enable")
			}
			show := func() (shown string) {
				for _, words := range [][]string{
					{"auth", "status"}, {"user", "list"}, {"user", "get", "alice"}, {"user", "get", "bob"}, {"user", "get", "root"},
					{"role", "list"}, {"role", "get", "reader"}, {"get", "k", "--print-value-only"},
				} {
					shown += ctl(words...)
				}
				if enabled {
					shown += string(run(t, etcdctl, "--endpoints", a.clientURL, "--user", "alice:pw", "get", "k"))
				}
				return shown
			}
			before := show()
			must(t, a.stop())
			b.kill()
			a.moveTo(t, b)
			err := b.startOnce()
			if enabled {
				if err == nil || !strings.Contains(b.lastLog(), "authentication is on") {
					t.Errorf("with authentication on it starts: %v", err)
				}
			} else {
				must(t, err)
				must(t, b.stop())
			}
			b.kill()
			run(t, b.program, "check", "--data-dir", b.dataDir())
			exported := filepath.Join(b.dir, "exported.db")
			run(t, b.program, "export", exported, "--data-dir", b.dataDir())
			sameStatus(t, b.program, exported)
			a.restoreFrom(t, exported)
			must(t, a.startOnce())
			if after := show(); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}
