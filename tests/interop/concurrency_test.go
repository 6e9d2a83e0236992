// The Go client's recipes over leases, txns and watches: sessions, mutexes, elections and software transactions.
//
// Each part is played with A and with B, on keys of its own. What must hold is the recipes' promise, so nothing is
// compared: a part that fails with A is wrong itself. Nothing waits for a time, but for leases that end by theirs.
package interop

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

const (
	shortSecs = 2 // etcd's least TTL, for leases that are to end by themselves
	longSecs  = 600

	mutexUsers   = 8
	mutexRounds  = 12
	counterUsers = 6
	counterSteps = 20
	accounts     = 5
	accountStart = 100
)

var concurrencyParts = []struct {
	name string
	play func(*testing.T, *server)
}{
	{"Sessions", playSessions},
	{"MutexCalls", playMutexCalls},
	{"MutexExcludes", playMutexExcludes},
	{"MutexOfEndedSessions", playMutexOfEndedSessions},
	{"Election", playElection},
	{"ElectionOfEndedSessions", playElectionOfEndedSessions},
	{"CounterSerializableSnapshot", playCounter(concurrency.SerializableSnapshot)},
	{"CounterSerializable", playCounter(concurrency.Serializable)},
	{"CounterRepeatableReads", playCounter(concurrency.RepeatableReads)},
	{"CounterReadCommitted", playCounter(concurrency.ReadCommitted)},
	{"Transfers", playTransfers},
	{"TransactionCalls", playTransactionCalls},
}

func TestConcurrencyRecipes(t *testing.T) {
	a, b := startPair(t)
	for _, part := range concurrencyParts {
		for _, s := range []*server{a, b} {
			t.Run(part.name+"/"+s.name, func(t *testing.T) {
				t.Parallel()
				part.play(t, s)
			})
		}
	}
}

// client connects to a server, or to what stands before it.
func (s *server) client(t *testing.T, address string, options ...grpc.DialOption) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, Logger: zap.NewNop(), DialOptions: append(options, reconnectSoon)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// tellsTxns makes a client tell of each txn that was answered. The recipes put their key by one, and who cancels before
// they have its answer leaves the key behind.
func tellsTxns(answered chan<- struct{}) grpc.DialOption {
	return grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, request, response any, conn *grpc.ClientConn, call grpc.UnaryInvoker, options ...grpc.CallOption) error {
		err := call(ctx, method, request, response, conn, options...)
		if err == nil && method == pb.KV_Txn_FullMethodName {
			answered <- struct{}{}
		}
		return err
	})
}

// patience ends all waiting of a part.
func patience(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), settleSecs*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func newSession(t *testing.T, client *clientv3.Client, ttlSecs int, options ...concurrency.SessionOption) *concurrency.Session {
	t.Helper()
	session, err := concurrency.NewSession(client, append(options, concurrency.WithTTL(ttlSecs))...)
	if err != nil {
		t.Fatal(err)
	}
	return session
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// putWith puts a key that lives as long as a lease, and tells its revision.
func putWith(t *testing.T, ctx context.Context, client *clientv3.Client, key string, lease clientv3.LeaseID) int64 {
	t.Helper()
	put, err := client.Put(ctx, key, "v", clientv3.WithLease(lease))
	must(t, err)
	return put.Header.Revision
}

// awaitDelete waits until a key that stood at a revision is deleted, and tells the revision of that.
func awaitDelete(t *testing.T, ctx context.Context, client *clientv3.Client, key string, since int64) int64 {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for response := range client.Watch(ctx, key, clientv3.WithRev(since+1), clientv3.WithFilterPut()) {
		must(t, response.Err())
		for _, event := range response.Events {
			return event.Kv.ModRevision
		}
	}
	t.Fatalf("%s is not deleted", key)
	return 0
}

func awaitDone(t *testing.T, ctx context.Context, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-ctx.Done():
		t.Fatalf("waited in vain for %s", what)
	}
}

func isDone(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// remaining is what is left of a lease; -1 if it is no more.
func remaining(t *testing.T, ctx context.Context, client *clientv3.Client, lease clientv3.LeaseID) int64 {
	t.Helper()
	left, err := client.TimeToLive(ctx, lease)
	must(t, err)
	return left.TTL
}

func count(t *testing.T, ctx context.Context, client *clientv3.Client, prefix string) int64 {
	t.Helper()
	found, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	must(t, err)
	return found.Count
}

func playSessions(t *testing.T, s *server) {
	ctx, client := patience(t), s.client(t, s.clientURL)

	kept := newSession(t, client, shortSecs)
	orphan := newSession(t, client, shortSecs)
	keptAt := putWith(t, ctx, client, "session/kept", kept.Lease())
	orphanAt := putWith(t, ctx, client, "session/orphan", orphan.Lease())
	longer, err := client.Grant(ctx, shortSecs+1)
	must(t, err)
	longerAt := putWith(t, ctx, client, "session/longer", longer.ID)
	orphan.Orphan()
	if !isDone(orphan.Done()) || orphan.Ctx().Err() == nil {
		t.Error("an orphaned session is not done")
	}
	if remaining(t, ctx, client, orphan.Lease()) < 0 {
		t.Error("an orphaned session's lease has ended at once")
	}
	p := startProxy(t, strings.TrimPrefix(s.clientURL, "http://"))
	far := newSession(t, s.client(t, p.address()), shortSecs)
	farAt := putWith(t, ctx, client, "session/far", far.Lease())
	must(t, p.listener.Close())
	p.cut()

	// A lease that is ended by others ends the session when it is next renewed.
	ended := newSession(t, client, shortSecs)
	_, err = client.Revoke(ctx, ended.Lease())
	must(t, err)
	awaitDone(t, ctx, "the end of a revoked session", ended.Done())

	// A lease that nobody renews ends by itself, and a session does so when its server was out of reach for that long.
	awaitDelete(t, ctx, client, "session/orphan", orphanAt)
	awaitDelete(t, ctx, client, "session/far", farAt)
	awaitDone(t, ctx, "the end of a session that is cut off", far.Done())
	// The longer lease shows that a session's would have ended by now if it had not been renewed.
	awaitDelete(t, ctx, client, "session/longer", longerAt)
	if isDone(kept.Done()) || remaining(t, ctx, client, kept.Lease()) < 0 || count(t, ctx, client, "session/kept") != 1 {
		t.Error("a session that is kept alive has ended")
	}

	// Close takes the lease and its keys at once.
	must(t, kept.Close())
	if !isDone(kept.Done()) || remaining(t, ctx, client, kept.Lease()) != -1 || count(t, ctx, client, "session/kept") != 0 {
		t.Error("a closed session is still there")
	}
	if at := awaitDelete(t, ctx, client, "session/kept", keptAt); at <= keptAt {
		t.Errorf("deleted at %d, put at %d", at, keptAt)
	}
	if err := kept.Close(); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("closed twice: %v", err)
	}

	// A session may take over a lease, and an unknown one ends it.
	granted, err := client.Grant(ctx, longSecs)
	must(t, err)
	taken := newSession(t, client, longSecs, concurrency.WithLease(granted.ID))
	if taken.Lease() != granted.ID {
		t.Errorf("took %x over, got %x", granted.ID, taken.Lease())
	}
	must(t, taken.Close())
	gone := newSession(t, client, longSecs, concurrency.WithLease(granted.ID))
	awaitDone(t, ctx, "the end of a session on a lease that is gone", gone.Done())

	// Its context ends a session, not its lease.
	short, cancel := context.WithCancel(ctx)
	left := newSession(t, client, longSecs, concurrency.WithContext(short))
	cancel()
	awaitDone(t, ctx, "the end of a session with its context", left.Done())
	if remaining(t, ctx, client, left.Lease()) < 0 {
		t.Error("a lease ended with the context of its session")
	}
}

// playMutexExcludes has many users count by reading and writing, which goes wrong if two of them are ever inside at once.
func playMutexExcludes(t *testing.T, s *server) {
	ctx := patience(t)
	clients := []*clientv3.Client{s.client(t, s.clientURL), s.client(t, s.clientURL), s.client(t, s.clientURL)}
	var inside atomic.Int32
	var order []int64 // of the acquisitions: guarded by the mutex itself
	var users sync.WaitGroup
	for n := range mutexUsers {
		client := clients[n%len(clients)]
		session := newSession(t, client, longSecs)
		users.Go(func() {
			for range mutexRounds {
				m := concurrency.NewMutex(session, "mutex/many")
				if err := m.Lock(ctx); err != nil {
					t.Error(err)
					return
				}
				if inside.Add(1) != 1 {
					t.Error("two are inside")
				}
				key, err := client.Get(ctx, m.Key())
				if err == nil && len(key.Kvs) == 1 {
					order = append(order, key.Kvs[0].CreateRevision)
				}
				counter, errGet := client.Get(ctx, "mutex/counter")
				var before int
				if errGet == nil && len(counter.Kvs) == 1 {
					before, errGet = strconv.Atoi(string(counter.Kvs[0].Value))
				}
				written, errPut := client.Txn(ctx).If(m.IsOwner()).Then(clientv3.OpPut("mutex/counter", strconv.Itoa(before+1))).Commit()
				if err := errors.Join(err, errGet, errPut); err != nil || !written.Succeeded {
					t.Errorf("inside: %v, %v", written, err)
				}
				inside.Add(-1)
				if err := m.Unlock(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	users.Wait()
	counter, err := clients[0].Get(ctx, "mutex/counter")
	must(t, err)
	if got := string(counter.Kvs[0].Value); got != strconv.Itoa(mutexUsers*mutexRounds) || len(order) != mutexUsers*mutexRounds {
		t.Errorf("counted to %s, with %d acquisitions, not to %d", got, len(order), mutexUsers*mutexRounds)
	}
	for i := 1; i < len(order); i++ {
		if order[i] <= order[i-1] {
			t.Errorf("who came at %d got it after who came at %d", order[i], order[i-1])
		}
	}
}

func playMutexCalls(t *testing.T, s *server) {
	ctx, client := patience(t), s.client(t, s.clientURL)
	one, other := newSession(t, client, longSecs), newSession(t, client, longSecs)
	held, wanted := concurrency.NewMutex(one, "mutex/calls"), concurrency.NewMutex(other, "mutex/calls")
	must(t, held.TryLock(ctx))
	// A session has it once, however often it asks.
	again := concurrency.NewMutex(one, "mutex/calls")
	must(t, again.Lock(ctx))
	if again.Key() != held.Key() {
		t.Errorf("one session holds %s and %s", held.Key(), again.Key())
	}
	if err := wanted.TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
		t.Errorf("tried a mutex that is held: %v", err)
	}
	if n := count(t, ctx, client, "mutex/calls/"); n != 1 {
		t.Errorf("%d keys stand after a try", n)
	}

	// Who gives up leaves nothing behind.
	short, cancel := context.WithCancel(ctx)
	gaveUp := make(chan error, 1)
	queued := make(chan struct{}, 1)
	waiting := concurrency.NewMutex(newSession(t, s.client(t, s.clientURL, tellsTxns(queued)), longSecs), "mutex/calls")
	go func() { gaveUp <- waiting.Lock(short) }()
	awaitDone(t, ctx, "the answer to a waiter", queued)
	if n := count(t, ctx, client, "mutex/calls/"); n != 2 {
		t.Errorf("%d keys stand for a holder and a waiter", n)
	}
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled wait: %v", err)
	}
	if n := count(t, ctx, client, "mutex/calls/"); n != 1 {
		t.Errorf("%d keys stand after a wait was cancelled", n)
	}

	must(t, held.Unlock(ctx))
	if err := held.Unlock(ctx); !errors.Is(err, concurrency.ErrLockReleased) {
		t.Errorf("unlocked twice: %v", err)
	}
	must(t, wanted.TryLock(ctx))
	must(t, wanted.Unlock(ctx))
	locker := concurrency.NewLocker(one, "mutex/locker")
	locker.Lock()
	locker.Unlock()
	if n := count(t, ctx, client, "mutex/calls/") + count(t, ctx, client, "mutex/locker/"); n != 0 {
		t.Errorf("%d keys are left", n)
	}
}

// awaitCount waits until so many keys have a prefix.
func awaitCount(t *testing.T, ctx context.Context, client *clientv3.Client, prefix string, n int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	for range events {
		if count(t, ctx, client, prefix) == n {
			return
		}
	}
	t.Fatalf("there are never %d keys with %s", n, prefix)
}

func playMutexOfEndedSessions(t *testing.T, s *server) {
	ctx, client := patience(t), s.client(t, s.clientURL)
	p := startProxy(t, strings.TrimPrefix(s.clientURL, "http://"))
	far := newSession(t, s.client(t, p.address()), shortSecs)
	lost := concurrency.NewMutex(far, "mutex/ended")
	must(t, lost.Lock(ctx))
	owner := lost.IsOwner()

	// They queue up, in this order.
	const waiters = 3
	var sessions [waiters]*concurrency.Session
	var mutexes [waiters]*concurrency.Mutex
	var got [waiters]chan error
	for i := range waiters {
		sessions[i] = newSession(t, client, longSecs)
		mutexes[i] = concurrency.NewMutex(sessions[i], "mutex/ended")
		got[i] = make(chan error, 1)
		go func() { got[i] <- mutexes[i].Lock(ctx) }()
		awaitCount(t, ctx, client, "mutex/ended/", int64(i)+2)
	}
	at, err := client.Get(ctx, lost.Key())
	must(t, err)

	// The holder is cut off: its lease ends, and with it its hold. Then come the others, one after the other.
	must(t, p.listener.Close())
	p.cut()
	ended := awaitDelete(t, ctx, client, lost.Key(), at.Header.Revision)
	must(t, <-got[0])
	awaitDone(t, ctx, "the end of the holder's session", far.Done())
	if mutexes[0].Header().Revision < ended {
		t.Errorf("the next one held it at %d, but it was freed at %d", mutexes[0].Header().Revision, ended)
	}
	fenced, err := client.Txn(ctx).If(owner).Then(clientv3.OpPut("mutex/never", "")).Commit()
	must(t, err)
	if fenced.Succeeded {
		t.Error("who lost the mutex still owns it")
	}
	select {
	case err := <-got[1]:
		t.Errorf("two hold it: %v", err)
	case err := <-got[2]:
		t.Errorf("two hold it: %v", err)
	default:
	}

	// The second waiter's session ends before its turn: it is told so, and the third comes next.
	_, err = client.Revoke(ctx, sessions[1].Lease())
	must(t, err)
	must(t, sessions[0].Close())
	if err := <-got[1]; !errors.Is(err, concurrency.ErrSessionExpired) {
		t.Errorf("a waiter without a session: %v", err)
	}
	must(t, <-got[2])
	if n := count(t, ctx, client, "mutex/ended/"); n != 1 {
		t.Errorf("%d keys are left, not the holder's alone", n)
	}
	must(t, mutexes[2].Unlock(ctx))

	// Without a lease nobody gets into the queue.
	if err := mutexes[1].Lock(ctx); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("a lock for a session that is gone: %v", err)
	}
}

// heardLeader waits for the next leader's value that an observer hears.
func heardLeader(t *testing.T, ctx context.Context, leaders <-chan *clientv3.GetResponse, want string) {
	t.Helper()
	select {
	case response, ok := <-leaders:
		if !ok || string(response.Kvs[0].Value) != want {
			t.Fatalf("heard %v, not %q", response, want)
		}
	case <-ctx.Done():
		t.Fatalf("waited in vain for the leader %q", want)
	}
}

func playElection(t *testing.T, s *server) {
	ctx, client := patience(t), s.client(t, s.clientURL)
	const name = "election/calls"
	var sessions [3]*concurrency.Session
	var candidates [3]*concurrency.Election
	for i := range sessions {
		sessions[i] = newSession(t, client, longSecs)
		candidates[i] = concurrency.NewElection(sessions[i], name)
	}
	if _, err := candidates[0].Leader(ctx); !errors.Is(err, concurrency.ErrElectionNoLeader) {
		t.Errorf("a leader before all elections: %v", err)
	}
	if err := candidates[0].Proclaim(ctx, "x"); !errors.Is(err, concurrency.ErrElectionNotLeader) {
		t.Errorf("proclaimed without a campaign: %v", err)
	}
	observing, stop := context.WithCancel(ctx)
	defer stop()
	leaders := candidates[2].Observe(observing)

	must(t, candidates[0].Campaign(ctx, "zero"))
	heardLeader(t, ctx, leaders, "zero")
	won := make(chan error, 1)
	go func() { won <- candidates[1].Campaign(ctx, "one") }()
	awaitCount(t, ctx, client, name+"/", 2)
	must(t, candidates[0].Proclaim(ctx, "zero again"))
	heardLeader(t, ctx, leaders, "zero again")
	// Who campaigns again proclaims.
	must(t, candidates[0].Campaign(ctx, "zero at last"))
	heardLeader(t, ctx, leaders, "zero at last")
	leader, err := candidates[1].Leader(ctx)
	must(t, err)
	if kv := leader.Kvs[0]; string(kv.Key) != candidates[0].Key() || kv.CreateRevision != candidates[0].Rev() || kv.Version != 3 || kv.Lease != int64(sessions[0].Lease()) {
		t.Errorf("the leader is %v", kv)
	}
	select {
	case err := <-won:
		t.Errorf("two lead: %v", err)
	default:
	}

	// One who gives up is not a candidate any more.
	short, cancel := context.WithCancel(ctx)
	gaveUp := make(chan error, 1)
	queued := make(chan struct{}, 2)
	third := concurrency.NewElection(newSession(t, s.client(t, s.clientURL, tellsTxns(queued)), longSecs), name)
	go func() { gaveUp <- third.Campaign(short, "three") }()
	awaitDone(t, ctx, "the answer to a candidate", queued)
	if n := count(t, ctx, client, name+"/"); n != 3 {
		t.Errorf("%d keys stand for a leader and two candidates", n)
	}
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled campaign: %v", err)
	}
	if n := count(t, ctx, client, name+"/"); n != 2 {
		t.Errorf("%d keys stand after a campaign was cancelled", n)
	}

	// Another object, say after a restart of the program, resigns for the leader.
	resumed := concurrency.ResumeElection(sessions[0], name, candidates[0].Key(), candidates[0].Rev())
	must(t, resumed.Proclaim(ctx, "resumed"))
	heardLeader(t, ctx, leaders, "resumed")
	must(t, resumed.Resign(ctx))
	must(t, <-won)
	heardLeader(t, ctx, leaders, "one")
	if err := candidates[0].Proclaim(ctx, "x"); !errors.Is(err, concurrency.ErrElectionNotLeader) {
		t.Errorf("proclaimed after resigning: %v", err)
	}
	must(t, candidates[1].Resign(ctx))
	must(t, candidates[1].Resign(ctx))
	if _, err := candidates[0].Leader(ctx); !errors.Is(err, concurrency.ErrElectionNoLeader) {
		t.Errorf("a leader after all have resigned: %v", err)
	}
	stop()
	for response := range leaders {
		t.Errorf("heard of %v", response)
	}
}

func playElectionOfEndedSessions(t *testing.T, s *server) {
	ctx, client := patience(t), s.client(t, s.clientURL)
	const name, terms = "election/ended", 4
	p := startProxy(t, strings.TrimPrefix(s.clientURL, "http://"))
	first := newSession(t, s.client(t, p.address()), shortSecs)
	must(t, concurrency.NewElection(first, name).Campaign(ctx, "term 0"))
	leaders := concurrency.NewElection(newSession(t, client, longSecs), name).Observe(ctx)
	heardLeader(t, ctx, leaders, "term 0")
	var sessions []*concurrency.Session
	var won []chan error
	for term := 1; term <= terms; term++ {
		session, elected := newSession(t, client, longSecs), make(chan error, 1)
		sessions, won = append(sessions, session), append(won, elected)
		go func() {
			elected <- concurrency.NewElection(session, name).Campaign(ctx, fmt.Sprint("term ", term))
		}()
		awaitCount(t, ctx, client, name+"/", int64(term)+1)
	}
	// The first leader's lease runs out, those of the others are revoked.
	must(t, p.listener.Close())
	p.cut()
	for i := range terms {
		must(t, <-won[i])
		heardLeader(t, ctx, leaders, fmt.Sprint("term ", i+1))
		if i == 0 {
			awaitDone(t, ctx, "the end of the first leader's session", first.Done())
		}
		_, err := client.Revoke(ctx, sessions[i].Lease())
		must(t, err)
	}
	if n := count(t, ctx, client, name+"/"); n != 0 {
		t.Errorf("%d keys are left", n)
	}
}

// playCounter has many add to one number. Only the weakest level lets additions get lost; none invents any.
func playCounter(level concurrency.Isolation) func(*testing.T, *server) {
	return func(t *testing.T, s *server) {
		ctx := patience(t)
		key := fmt.Sprint("counter/", int(level))
		clients := []*clientv3.Client{s.client(t, s.clientURL), s.client(t, s.clientURL)}
		var tries atomic.Int32
		var users sync.WaitGroup
		for n := range counterUsers {
			users.Go(func() {
				for range counterSteps {
					_, err := concurrency.NewSTM(clients[n%len(clients)], func(stm concurrency.STM) error {
						tries.Add(1)
						before, _ := strconv.Atoi(stm.Get(key))
						stm.Put(key, strconv.Itoa(before+1))
						if stm.Get(key) != strconv.Itoa(before+1) {
							return errors.New("a transaction does not read what it wrote")
						}
						return nil
					}, concurrency.WithIsolation(level), concurrency.WithAbortContext(ctx), concurrency.WithPrefetch(key))
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		users.Wait()
		const all = counterUsers * counterSteps
		found, err := clients[0].Get(ctx, key)
		must(t, err)
		got, err := strconv.Atoi(string(found.Kvs[0].Value))
		must(t, err)
		if got > all || got < counterSteps || got != all && level != concurrency.ReadCommitted {
			t.Errorf("counted to %d, not to %d", got, all)
		}
		if found.Kvs[0].Version != all {
			t.Errorf("%d transactions were committed, not %d", found.Kvs[0].Version, all)
		}
		t.Logf("%d additions took %d tries and made %d", all, tries.Load(), got)
	}
}

// playTransfers moves money about, at the two levels that keep a sum over several keys; it is looked at in every revision.
func playTransfers(t *testing.T, s *server) {
	ctx, client := patience(t), s.client(t, s.clientURL)
	account := func(n int) string { return fmt.Sprint("account/", n%accounts) }
	var start int64
	for n := range accounts {
		put, err := client.Put(ctx, account(n), strconv.Itoa(accountStart))
		must(t, err)
		start = put.Header.Revision
	}
	levels := []concurrency.Isolation{concurrency.SerializableSnapshot, concurrency.Serializable}
	var users sync.WaitGroup
	for n := range counterUsers {
		users.Go(func() {
			for i := range counterSteps {
				from, to, amount := account(n+i), account(n+i+1+i%(accounts-1)), 1+(n*i)%70
				_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
					// An empty account is no key.
					left, _ := strconv.Atoi(stm.Get(from))
					there, _ := strconv.Atoi(stm.Get(to))
					paid := min(left, amount)
					if paid == left {
						stm.Del(from)
					} else {
						stm.Put(from, strconv.Itoa(left-paid))
					}
					if there+paid > 0 {
						stm.Put(to, strconv.Itoa(there+paid))
					}
					return nil
				}, concurrency.WithIsolation(levels[n%len(levels)]), concurrency.WithAbortContext(ctx))
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	users.Wait()
	last, err := client.Get(ctx, "account/", clientv3.WithPrefix())
	must(t, err)
	for revision := start; revision <= last.Header.Revision; revision++ {
		found, err := client.Get(ctx, "account/", clientv3.WithPrefix(), clientv3.WithRev(revision))
		must(t, err)
		sum := 0
		for _, kv := range found.Kvs {
			n, err := strconv.Atoi(string(kv.Value))
			must(t, err)
			sum += n
		}
		if sum != accounts*accountStart {
			t.Fatalf("at revision %d the sum is %d: %v", revision, sum, found.Kvs)
		}
	}
}

func playTransactionCalls(t *testing.T, s *server) {
	ctx, client := patience(t), s.client(t, s.clientURL)
	for _, level := range []concurrency.Isolation{concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads, concurrency.ReadCommitted} {
		key := fmt.Sprint("stm/", int(level), "/")
		options := []concurrency.STMOption{concurrency.WithIsolation(level), concurrency.WithAbortContext(ctx)}
		refused := errors.New("no")
		if _, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
			stm.Put(key+"never", "")
			return refused
		}, options...); !errors.Is(err, refused) {
			t.Errorf("level %d: a refused transaction: %v", level, err)
		}
		committed, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
			if stm.Get(key+"none") != "" || stm.Rev(key+"none") != 0 {
				return errors.New("a key that is not there has a value")
			}
			stm.Put(key+"a", "1")
			stm.Put(key+"b", "2")
			stm.Del(key + "none")
			return nil
		}, options...)
		must(t, err)
		found, err := client.Get(ctx, key, clientv3.WithPrefix())
		must(t, err)
		if len(found.Kvs) != 2 || found.Kvs[0].ModRevision != committed.Header.Revision || found.Kvs[1].ModRevision != committed.Header.Revision {
			t.Errorf("level %d: committed at %d: %v", level, committed.Header.Revision, found.Kvs)
		}
		// Another writes between the read and the commit: the weakest level does not see it, all others try again.
		tries := 0
		_, err = concurrency.NewSTM(client, func(stm concurrency.STM) error {
			tries++
			was := stm.Get(key + "a")
			if tries == 1 {
				if _, err := client.Put(ctx, key+"a", "other"); err != nil {
					return err
				}
			}
			stm.Put(key+"b", was)
			return nil
		}, options...)
		must(t, err)
		found, err = client.Get(ctx, key+"b")
		must(t, err)
		wantTries, want := 2, "other"
		if level == concurrency.ReadCommitted {
			wantTries, want = 1, "1"
		}
		if got := string(found.Kvs[0].Value); tries != wantTries || got != want {
			t.Errorf("level %d: %q after %d tries, not %q after %d", level, got, tries, want, wantTries)
		}
	}
	// The strongest level minds also what is written between its reads and its commit to a key that it only writes.
	tries := 0
	_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
		tries++
		stm.Get("stm/read")
		if tries == 1 {
			if _, err := client.Put(ctx, "stm/written", "other"); err != nil {
				return err
			}
		}
		stm.Put("stm/written", "mine")
		return nil
	}, concurrency.WithAbortContext(ctx))
	must(t, err)
	if tries != 2 {
		t.Errorf("a write conflict took %d tries", tries)
	}
}
