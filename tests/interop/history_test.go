// Watches by the Go client while everything happens at once, and every one of them checked against all that happened.
//
// Writers, watchers, compactions, `kill -9` and restarts, connections that are cut and others that stall: B alone has to
// keep etcd's guarantees. What happened is read revision by revision, before a compaction can take it away; the order of
// a txn's changes is known from the request. SEED=n replays what is asked for; how it interleaves is up to the machine.
package interop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

const (
	historyWrites  = 6000
	historyWriters = 4
	historyWatches = 36
	proxies        = 4
	kills          = 3
	writesPerChaos = 25
	haltsMax       = 200
	settleSecs     = 60
)

func TestWatchKeepsItsGuarantees(t *testing.T) {
	seed := fromEnv(t, "SEED", rand.Uint64()>>1)
	fmt.Printf("history of watches: SEED=%d\n", seed)
	flags := []string{"--watch-progress-notify-interval", "100ms"}
	if isOurs(programB()) {
		flags = append(flags, "--flush-size", "1MiB")
	}
	h := newHappening(t, seed, startB(t, flags...))
	h.play()
	for _, w := range h.watchers {
		for i, watched := range w.calls {
			if err := h.check(w.request, watched); err != nil {
				t.Errorf("SEED=%d: watcher %d, its call %d of %d, from %d: %v\n%s", seed, w.number, i+1, len(w.calls), watched.start, err, showMessage(w.request))
			}
		}
	}
	t.Log(h.summary())
}

// happening is one run: the server, all who use it, and what has become of their work.
type happening struct {
	t      *testing.T
	seed   uint64
	server *server
	random *rand.Rand
	keys   []string
	kv     pb.KVClient

	proxies  []*proxy
	clients  []*clientv3.Client
	watchers []*watcher

	mu sync.Mutex
	// changed is told of every change of what follows.
	changed *sync.Cond
	// requests are the keys that a revision changed, in order, by its request; of a write without an answer nothing is known.
	requests map[int64][]interval
	written  int
	// ending: only the last two writes follow, so nobody leaves any more, who would then ask for a future that never comes.
	ending, finished bool
	// aborted: the server does not answer any more, so there is nothing to go on with.
	aborted bool
	newest  int64 // of those answered
	// read is the last revision that was read; compacting the greatest that a compaction was asked at.
	read, compacting int64
	changes          [][]*mvccpb.Event
	unanswered       int

	*history
	compactions int
}

// watcher is a watch that is called for again whenever it ends.
type watcher struct {
	number  int
	request *pb.WatchCreateRequest
	client  *clientv3.Client
	random  *rand.Rand
	// slow: it stops reading now and then. restless: it leaves and resumes.
	slow, restless bool

	calls []*watched
	// at is the next revision that it may hear of, progress the last that it was told of; guarded by the happening's mu.
	at, progress                      int64
	halts                             []string
	compacted, left, events, answered int
}

func newHappening(t *testing.T, seed uint64, b *server) *happening {
	h := &happening{t: t, seed: seed, server: b, random: rand.New(rand.NewPCG(seed, 0)), requests: make(map[int64][]interval), read: 1, newest: 1}
	h.changed = sync.NewCond(&h.mu)
	for _, folder := range []string{"a/", "b/", "c/", "d/"} {
		for i := range 6 {
			h.keys = append(h.keys, folder+strconv.Itoa(i))
		}
	}
	address := strings.TrimPrefix(b.clientURL, "http://")
	addresses := []string{address}
	for range proxies {
		p := startProxy(t, address)
		h.proxies = append(h.proxies, p)
		addresses = append(addresses, p.address())
	}
	for _, address := range addresses {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{reconnectSoon}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		h.clients = append(h.clients, client)
	}
	conn, err := b.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	h.kv = pb.NewKVClient(conn)
	for n := range historyWatches {
		h.watchers = append(h.watchers, h.newWatcher(n))
	}
	return h
}

func (h *happening) newWatcher(n int) *watcher {
	random := rand.New(rand.NewPCG(h.seed, uint64(n)+1))
	oneIn := func(n int) bool { return random.IntN(n) == 0 }
	r := &pb.WatchCreateRequest{PrevKv: oneIn(2), ProgressNotify: oneIn(2), Fragment: oneIn(2)}
	key := h.keys[random.IntN(len(h.keys))]
	switch n % 5 {
	case 0:
		r.Key, r.RangeEnd = []byte{0}, []byte{0}
	case 1:
		r.Key = []byte(key)
	case 2:
		r.Key, r.RangeEnd = []byte(key[:2]), prefixEnd([]byte(key[:2]))
	case 3:
		r.Key, r.RangeEnd = []byte(key), []byte{0}
	case 4:
		r.Key, r.RangeEnd = []byte("a/3"), []byte("c/2")
	}
	if oneIn(3) {
		r.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_FilterType(random.IntN(2))}
	}
	if oneIn(2) {
		r.StartRevision = 1
	}
	return &watcher{
		number: n, request: r, client: h.clients[n%len(h.clients)], random: random, slow: oneIn(3), restless: oneIn(3),
	}
}

// play runs it all, and returns when every watcher has heard the last change.
func (h *happening) play() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var writers, others sync.WaitGroup
	for n := range historyWriters {
		writers.Go(func() { h.write(rand.New(rand.NewPCG(h.seed, 1000+uint64(n)))) })
	}
	for _, w := range h.watchers {
		others.Go(func() { h.watch(ctx, w) })
	}
	others.Go(h.readAll)
	h.disturb()
	writers.Wait()
	for _, p := range h.proxies {
		p.flow()
	}
	puts, deletes := h.finish()
	if h.aborted {
		cancel()
		others.Wait()
		h.t.Fatalf("SEED=%d: the server does not answer any more\n%s", h.seed, h.server.lastLog())
	}
	h.t.Logf("the last revision is %d", deletes)
	// Whoever asks has to be told how far the store is, though nothing happens any more.
	bookmarked := &watcher{
		number: len(h.watchers), client: h.clients[0],
		request: &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, ProgressNotify: true},
		calls:   []*watched{{start: max(1, deletes-20), known: deletes}},
	}
	h.note(func() { h.watchers = append(h.watchers, bookmarked) })
	others.Go(func() { h.bookmark(ctx, bookmarked) })
	h.waitUntil(func() string {
		var late []string
		for _, w := range h.watchers {
			if !w.done(puts, deletes) {
				late = append(late, fmt.Sprintf("watcher %d, which stands at %d with progress %d: %s", w.number, w.at, w.progress, showMessage(w.request)))
			}
		}
		if h.read < deletes {
			late = append(late, fmt.Sprintf("the reader, which stands at %d", h.read))
		}
		return strings.Join(late, "\n")
	})
	cancel()
	others.Wait()
	h.history = h.assemble()
}

// done tells whether a watcher has heard all that it wants of the last two changes, of which one puts all keys and the
// other deletes them, and has been told of progress if it asked to be.
func (w *watcher) done(puts, deletes int64) bool {
	last := deletes
	if slices.Contains(w.request.Filters, pb.WatchCreateRequest_NODELETE) {
		last = puts
	}
	return w.at > last && (!w.request.ProgressNotify || w.progress >= deletes)
}

// waitUntil waits until nothing is missing.
func (h *happening) waitUntil(missing func() string) {
	h.t.Helper()
	giveUp := time.Now().Add(settleSecs * time.Second)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-time.After(settleSecs * time.Second):
			h.changed.Broadcast()
		case <-stop:
		}
	}()
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		what := missing()
		if what == "" {
			return
		}
		if time.Now().After(giveUp) {
			// What was heard shows what went wrong, so the check follows.
			h.t.Errorf("SEED=%d: not done after %d s: %s", h.seed, settleSecs, what)
			return
		}
		h.changed.Wait()
	}
}

// note changes what is shared and wakes whoever waits for it.
func (h *happening) note(change func()) {
	h.mu.Lock()
	change()
	h.mu.Unlock()
	h.changed.Broadcast()
}

// awaitWrites returns once so many writes were made, or all.
func (h *happening) awaitWrites(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.written < n && !h.finished && !h.aborted {
		h.changed.Wait()
	}
}

// write is one writer.
func (h *happening) write(random *rand.Rand) {
	for range historyWrites / historyWriters {
		if h.isAborted() {
			return
		}
		h.request(h.change(random))
	}
}

func (h *happening) isAborted() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.aborted
}

func (h *happening) change(random *rand.Rand) *pb.TxnRequest {
	key := func() []byte { return []byte(h.keys[random.IntN(len(h.keys))]) }
	t := new(pb.TxnRequest)
	switch n := random.IntN(100); {
	case n < 55:
		t.Success = append(t.Success, putOp(key(), someValue(random)))
	case n < 65:
		t.Success = append(t.Success, deleteOp(key(), nil))
	case n < 68:
		prefix := key()[:2]
		t.Success = append(t.Success, deleteOp(prefix, prefixEnd(prefix)))
	default:
		for _, i := range random.Perm(len(h.keys))[:2+random.IntN(6)] {
			op := putOp([]byte(h.keys[i]), someValue(random))
			if random.IntN(3) == 0 {
				op = deleteOp([]byte(h.keys[i]), nil)
			}
			t.Success = append(t.Success, op)
		}
	}
	return t
}

func someValue(random *rand.Rand) []byte {
	switch random.IntN(8) {
	case 0:
		return nil
	case 1:
		return bytes.Repeat([]byte{byte(random.Uint32())}, random.IntN(6000))
	default:
		return strconv.AppendUint(nil, random.Uint64(), 36)
	}
}

func putOp(key, value []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value}}}
}

func deleteOp(key, end []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key, RangeEnd: end}}}
}

// request sends one write, as a plain put or delete if it is but one, and tells its revision; 0 if it changed nothing or
// was not answered.
func (h *happening) request(t *pb.TxnRequest) int64 {
	ctx, cancel := context.WithTimeout(context.Background(), callSecs*time.Second)
	defer cancel()
	var revision int64
	var err error
	note := func(header *pb.ResponseHeader, changed bool) {
		if changed {
			revision = header.GetRevision()
		}
	}
	put, deletion := t.Success[0].GetRequestPut(), t.Success[0].GetRequestDeleteRange()
	switch {
	case len(t.Success) > 1:
		var r *pb.TxnResponse
		r, err = h.kv.Txn(ctx, t, grpc.WaitForReady(true))
		note(r.GetHeader(), slices.ContainsFunc(r.GetResponses(), func(op *pb.ResponseOp) bool {
			return op.GetResponsePut() != nil || op.GetResponseDeleteRange().GetDeleted() > 0
		}))
	case put != nil:
		var r *pb.PutResponse
		r, err = h.kv.Put(ctx, put, grpc.WaitForReady(true))
		note(r.GetHeader(), err == nil)
	default:
		var r *pb.DeleteRangeResponse
		r, err = h.kv.DeleteRange(ctx, deletion, grpc.WaitForReady(true))
		note(r.GetHeader(), r.GetDeleted() > 0)
	}
	var keys []interval
	for _, op := range t.Success {
		if put := op.GetRequestPut(); put != nil {
			keys = append(keys, interval{put.Key, nil})
		} else {
			keys = append(keys, interval{op.GetRequestDeleteRange().Key, op.GetRequestDeleteRange().RangeEnd})
		}
	}
	h.note(func() {
		h.written++
		if err != nil {
			h.unanswered++
			h.aborted = h.aborted || ctx.Err() != nil
		} else if revision != 0 {
			h.requests[revision] = keys
			h.newest = max(h.newest, revision)
		}
	})
	return revision
}

// finish puts all keys, then deletes them, so that every watcher has something to wait for.
func (h *happening) finish() (puts, deletes int64) {
	all, none := new(pb.TxnRequest), new(pb.TxnRequest)
	for _, key := range h.keys {
		all.Success = append(all.Success, putOp([]byte(key), []byte("last")))
		none.Success = append(none.Success, deleteOp([]byte(key), nil))
	}
	h.note(func() { h.ending = true })
	puts, deletes = h.request(all), h.request(none)
	h.note(func() {
		h.finished = true
		h.aborted = h.aborted || puts == 0 || deletes != puts+1
	})
	return puts, deletes
}

// readAll reads the store at each revision and keeps how it differs from the one before.
func (h *happening) readAll() {
	before := make(map[string]*mvccpb.KeyValue)
	for {
		h.mu.Lock()
		for h.read == h.newest && !h.finished && !h.aborted {
			h.changed.Wait()
		}
		revision := h.read + 1
		over := h.finished && h.read >= h.newest || h.aborted
		h.mu.Unlock()
		if over {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), callSecs*time.Second)
		r, err := h.kv.Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: revision, Serializable: true}, grpc.WaitForReady(true))
		cancel()
		if err != nil {
			continue // the server was killed
		}
		after := make(map[string]*mvccpb.KeyValue, len(r.Kvs))
		var changes []*mvccpb.Event
		for _, kv := range r.Kvs {
			after[string(kv.Key)] = kv
			if kv.ModRevision == revision {
				changes = append(changes, &mvccpb.Event{Kv: kv})
			} else if was := before[string(kv.Key)]; !proto.Equal(was, kv) {
				h.note(func() { h.t.Errorf("SEED=%d: at revision %d: %v, but before: %v", h.seed, revision, kv, was) })
			}
		}
		for key := range before {
			if after[key] == nil {
				changes = append(changes, &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: revision}})
			}
		}
		before = after
		h.note(func() {
			h.read = revision
			h.changes = append(h.changes, changes)
		})
	}
}

// assemble puts the changes of each revision in order.
func (h *happening) assemble() *history {
	known := &history{journal: newJournal(), unordered: make(map[int64]bool)}
	for i, changes := range h.changes {
		revision := int64(i) + 2
		slices.SortFunc(changes, func(a, b *mvccpb.Event) int { return bytes.Compare(a.Kv.Key, b.Kv.Key) })
		request, ok := h.requests[revision]
		known.unordered[revision] = !ok
		place := func(event *mvccpb.Event) int {
			return slices.IndexFunc(request, func(i interval) bool { return i.covers(event.Kv.Key) })
		}
		slices.SortStableFunc(changes, func(a, b *mvccpb.Event) int { return place(a) - place(b) })
		if len(changes) == 0 {
			h.t.Errorf("SEED=%d: nothing changed at revision %d", h.seed, revision)
		}
		for _, event := range changes {
			known.add(event)
		}
	}
	return known
}

// disturb does all that can go wrong, as the writes go on.
func (h *happening) disturb() {
	var killAt []int
	for i := range kills {
		killAt = append(killAt, historyWrites*(i+1)/(kills+1)+h.random.IntN(historyWrites/10))
	}
	flowAt := make(map[*proxy]int)
	for n := writesPerChaos; n < historyWrites; n += 1 + h.random.IntN(2*writesPerChaos) {
		h.awaitWrites(n)
		for p, at := range maps.Clone(flowAt) {
			if at <= n {
				p.flow()
				delete(flowAt, p)
			}
		}
		if len(killAt) > 0 && killAt[0] <= n {
			killAt = killAt[1:]
			if err := h.server.restart(); err != nil {
				h.t.Errorf("SEED=%d: it does not come back: %v", h.seed, err)
				h.note(func() { h.aborted = true })
				return
			}
			continue
		}
		p := h.proxies[h.random.IntN(len(h.proxies))]
		switch h.random.IntN(6) {
		case 0, 1:
			p.cut()
		case 2:
			p.stall()
			flowAt[p] = n + 200 + h.random.IntN(400)
		case 3:
			h.compact()
		default:
			_ = h.clients[0].RequestProgress(progressStream(context.Background(), 0))
		}
	}
}

// compact raises the floor, as far as the store has been read.
func (h *happening) compact() {
	h.mu.Lock()
	floor, read := h.compacting, h.read
	h.mu.Unlock()
	if read <= floor+1 {
		return
	}
	at := floor + 1 + h.random.Int64N(read-floor)/2
	if h.random.IntN(4) == 0 {
		at = max(floor+1, read-h.random.Int64N(10))
	}
	h.note(func() { h.compacting = at })
	ctx, cancel := context.WithTimeout(context.Background(), callSecs*time.Second)
	defer cancel()
	if _, err := h.kv.Compact(ctx, &pb.CompactionRequest{Revision: at, Physical: h.random.IntN(4) == 0}, grpc.WaitForReady(true)); err != nil {
		h.t.Errorf("SEED=%d: compaction at %d: %v", h.seed, at, err)
	}
	h.compactions++
}

// progressStream names a stream of its own. The client tells all watchers of a stream what a progress answer says, also
// one that was created after the request and has not come that far; so who resumes moves on to the next stream.
func progressStream(ctx context.Context, n int) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "stream", strconv.Itoa(n))
}

// watch calls for a watch again and again.
func (h *happening) watch(ctx context.Context, w *watcher) {
	start := w.request.StartRevision
	for ctx.Err() == nil {
		call := &watched{start: start}
		h.note(func() {
			call.known = h.newest
			w.at = start
		})
		w.calls = append(w.calls, call)
		h.hear(ctx, w, call)
		h.mu.Lock()
		end := call.answers
		var last watchAnswer
		if len(end) > 0 {
			last = end[len(end)-1]
		}
		start = w.at
		floor, newest, ending := h.compacting, h.newest, h.ending
		h.mu.Unlock()
		switch {
		case last.CompactRevision != 0:
			w.compacted++
			start = last.CompactRevision
		case last.Err() != nil && ctx.Err() == nil:
			w.halts = append(w.halts, last.Err().Error())
			if len(w.halts) > haltsMax {
				h.t.Errorf("SEED=%d: watcher %d: ended too often: %v", h.seed, w.number, last.Err())
				return
			}
		default:
			w.left++
			// Not everybody resumes: some ask for what is old, perhaps too old, and some for whatever comes.
			switch n := w.random.IntN(10); {
			case ending:
			case n == 0:
				start = max(1, floor+w.random.Int64N(max(1, newest-floor+5))-5)
			case n == 1:
				start = 0
			}
		}
	}
}

// hear makes one call of Watch and takes in what it brings, until it ends or the watcher has enough.
func (h *happening) hear(ctx context.Context, w *watcher, call *watched) {
	ctx, cancel := context.WithCancel(progressStream(ctx, len(w.calls)-1))
	defer cancel()
	r := w.request
	options := []clientv3.OpOption{clientv3.WithRev(call.start), clientv3.WithCreatedNotify(), clientv3.WithRange(string(r.RangeEnd))}
	for _, o := range []struct {
		wanted bool
		option clientv3.OpOption
	}{
		{r.PrevKv, clientv3.WithPrevKV()},
		{r.ProgressNotify, clientv3.WithProgressNotify()},
		{r.Fragment, clientv3.WithFragment()},
		{slices.Contains(r.Filters, pb.WatchCreateRequest_NOPUT), clientv3.WithFilterPut()},
		{slices.Contains(r.Filters, pb.WatchCreateRequest_NODELETE), clientv3.WithFilterDelete()},
	} {
		if o.wanted {
			options = append(options, o.option)
		}
	}
	enough := 1 << 30
	if w.restless {
		enough = 1 + w.random.IntN(300)
	}
	for response := range w.client.Watch(ctx, string(r.Key), options...) {
		var pause int
		h.note(func() {
			a := watchAnswer{WatchResponse: response, compacting: h.compacting}
			call.answers = append(call.answers, a)
			w.answered++
			w.events += len(a.Events)
			switch {
			case a.IsProgressNotify():
				w.progress = a.Header.Revision
				w.at = max(w.at, a.Header.Revision+1)
			case len(a.Events) > 0:
				w.at = a.Events[len(a.Events)-1].Kv.ModRevision + 1
			case a.Created && call.start == 0:
				w.at = a.Header.Revision + 1
			}
			if w.slow && w.random.IntN(40) == 0 {
				pause = h.written + 100
			}
			if h.ending {
				enough = 1 << 30
			}
		})
		h.awaitWrites(pause)
		if enough--; enough <= 0 {
			return
		}
	}
}

// bookmark opens one more watch, which is told of progress only if it asks, and asks until it has come as far as the store.
func (h *happening) bookmark(ctx context.Context, w *watcher) {
	call := w.calls[0]
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "stream", "bookmark"))
	defer cancel()
	channel := w.client.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(call.start), clientv3.WithCreatedNotify())
	for {
		select {
		case response, ok := <-channel:
			if !ok {
				return
			}
			h.note(func() {
				call.answers = append(call.answers, watchAnswer{WatchResponse: response, compacting: h.compacting})
				w.answered++
				w.events += len(response.Events)
				if n := len(response.Events); n > 0 {
					w.at = response.Events[n-1].Kv.ModRevision + 1
				} else if response.IsProgressNotify() {
					w.progress = response.Header.Revision
				}
			})
		case <-time.After(askAgain):
			if err := w.client.RequestProgress(ctx); err != nil && !errors.Is(err, context.Canceled) {
				h.note(func() { h.t.Errorf("SEED=%d: request of progress: %v", h.seed, err) })
				return
			}
		}
	}
}

func (h *happening) summary() string {
	var calls, compacted, left, answers, events, cuts int
	halts := make(map[string]int)
	for _, w := range h.watchers {
		calls, compacted, left = calls+len(w.calls), compacted+w.compacted, left+w.left
		answers, events = answers+w.answered, events+w.events
		for _, halt := range w.halts {
			halts[halt]++
		}
	}
	for _, p := range h.proxies {
		cuts += p.cuts / 2
	}
	return fmt.Sprintf("%d changes at %d revisions, %d writes unanswered, %d kills, %d compactions, %d connections cut; "+
		"%d watchers, %d calls, of which %d were cancelled by a compaction, %d left, and ended with: %v; %d answers with %d events",
		len(h.events), len(h.changes), h.unanswered, kills, h.compactions, cuts, len(h.watchers), calls, compacted, left, halts, answers, events)
}
