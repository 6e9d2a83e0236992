// The watches of the differential fuzzer: random streams on both servers beside its requests.
//
// A journal stream on each server hears every change; from A's journal it is known what any other watcher must hear.
// Control answers are waited for and compared at once. Events come when each server likes, so they are compared when
// the fuzzer synchronises: then every watcher has to have heard all it is due, and no more.
//
// Before a compaction the watches are always synchronised: from it on previous values are missing, and watchers that
// are behind may be cancelled. Nothing else depends on time, apart from watchers cancelled while behind: of those it is
// demanded that they heard a beginning of what they were due, of whole revisions.
package interop

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

const (
	stepsPerBurst = 16
	stepsPerSync  = 80
	stepsPerClose = 600
	burstMax      = 6
	streamsMax    = 4
	watchersMax   = 8
	// askAgain is how long a requested progress answer is waited for; one that is not due yet never comes.
	askAgain = 20 * time.Millisecond
	// queueSafe is well below the 128 answers that etcd queues for a stream before it sets watchers aside.
	queueSafe = 100

	textCompacted = "etcdserver: mvcc: required revision has been compacted"
	textEmpty     = "mvcc: watcher range is empty"
	textDuplicate = "mvcc: duplicate watch ID provided on the WatchStream"
)

// watches are the streams that a round of the fuzzer holds open on both servers.
type watches struct {
	t        *testing.T
	seed     uint64
	step     int
	servers  [2]*server
	store    *generator // knows the newest revision and the floor
	random   *rand.Rand
	keys     *generator // makes keys and ranges from random
	outcomes map[string]int

	journal  *journal
	journals [2]*side
	streams  []*watchStream
}

// watchStream is one stream on both servers and what it should be like.
type watchStream struct {
	sides [2]*side
	// inUse are the watchers whose ids are taken; created are all there ever were.
	inUse   map[int64]*watching
	created []*watching
	next    int64
	// soiled are ids not to be used again: events may have been on their way when their last watcher was cancelled, or its
	// cancelled answer still is. etcd would take them for the next watcher's, or the next one's for the last's.
	soiled   map[int64]bool
	controls int
	// halfClosed: we have said that no more requests follow.
	halfClosed bool
	// silentFrom is the revision from which on no progress may be told, because a watcher has not come that far; 0 if there is none.
	silentFrom int64
}

// watching is a watcher as it should be.
type watching struct {
	request *pb.WatchCreateRequest // as the server understands it
	id      int64
	// start is the first revision that it is to hear of.
	start int64
	// due is what it must have heard up to the last synchronisation; scanned tells how much of the journal that covers.
	due     []*mvccpb.Event
	scanned int
	checked [2]int
	// settled: nothing was on its way at the last synchronisation.
	settled bool
	// live: etcd has certainly done reading history for it (see judge), so no compaction can cancel it.
	live bool
	// born is the newest revision when it was created.
	born      int64
	compacted compaction
	cancelled bool
	// until is the newest revision when it was cancelled while behind; 0 if it was not.
	until int64
}

// compaction tells whether a watcher is to be cancelled because it starts below the floor.
type compaction int

const (
	no compaction = iota
	soon
	perhaps // it was cancelled by request before it was known to be
	done
)

func newWatches(t *testing.T, seed uint64, first int, a, b *server, store *generator, outcomes map[string]int) *watches {
	w := &watches{
		t: t, seed: seed, step: first, servers: [2]*server{a, b}, store: store, outcomes: outcomes,
		random: rand.New(rand.NewPCG(seed, uint64(first)+1)), journal: newJournal(),
	}
	w.keys = &generator{random: w.random, keys: store.keys}
	w.openJournals()
	return w
}

func (w *watches) fatalf(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("SEED=%d, step %d: watch: %s", w.seed, w.step, fmt.Sprintf(format, args...))
}

func (w *watches) oneIn(n int) bool { return w.random.IntN(n) == 0 }

// act does what one step brings besides its request.
func (w *watches) act(step int) {
	w.step = step
	if w.oneIn(stepsPerSync) {
		w.sync()
	}
	if w.oneIn(stepsPerBurst*20) && len(w.streams) > 0 {
		w.sync()
		w.closeStream(w.streams[w.random.IntN(len(w.streams))])
	}
	if w.oneIn(stepsPerBurst) {
		w.burst()
	}
	for _, s := range w.streams {
		if s.silentFrom != 0 && !s.halfClosed && w.oneIn(stepsPerBurst) {
			w.send(s.sides, progressRequest())
			w.outcomes["watch: progress not due"]++
		}
	}
}

// open opens a stream on both servers.
func (w *watches) open() [2]*side {
	w.t.Helper()
	var sides [2]*side
	for i, server := range w.servers {
		side, err := server.listen()
		if err != nil {
			w.fatalf("%s: %v", server.name, err)
		}
		w.t.Cleanup(side.cancel)
		sides[i] = side
	}
	return sides
}

func (w *watches) openStream() *watchStream {
	s := &watchStream{sides: w.open(), inUse: make(map[int64]*watching), soiled: make(map[int64]bool)}
	w.streams = append(w.streams, s)
	return s
}

func (w *watches) closeStream(s *watchStream) {
	for _, side := range s.sides {
		side.cancel()
	}
	w.streams = slices.DeleteFunc(w.streams, func(other *watchStream) bool { return other == s })
}

// openJournals begins to hear all changes; no request is on its way.
func (w *watches) openJournals() {
	w.t.Helper()
	w.journals = w.open()
	w.send(w.journals, createRequest(proto.Clone(everything).(*pb.WatchCreateRequest)))
	for _, side := range w.journals {
		w.await(side, nil, func() string { return "the journal" }, func() bool { return len(side.watchers) == 1 })
	}
}

var everything = &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, PrevKv: true}

func createRequest(r *pb.WatchCreateRequest) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}
}

func cancelRequest(id int64) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}
}

func progressRequest() *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
}

func (w *watches) send(sides [2]*side, request *pb.WatchRequest) {
	w.t.Helper()
	for _, side := range sides {
		if err := side.stream.Send(request); err != nil {
			w.fatalf("%s: %v", side.server, err)
		}
	}
}

// await waits until a condition of what a side has heard holds. A request, if given, is repeated meanwhile.
func (w *watches) await(s *side, again *pb.WatchRequest, what func() string, holds func() bool) {
	w.t.Helper()
	giveUp := time.After(callSecs * time.Second)
	for {
		s.mu.Lock()
		ok, faults, err := holds(), s.faults, s.err
		s.mu.Unlock()
		switch {
		case len(faults) > 0:
			w.fatalf("%s: %s", s.server, faults[0])
		case ok:
			return
		case err != nil:
			w.fatalf("%s: the stream ended: %v", s.server, err)
		}
		var repeat <-chan time.Time
		if again != nil {
			repeat = time.After(askAgain)
		}
		select {
		case <-s.changed:
		case <-repeat:
			if err := s.stream.Send(again); err != nil {
				w.fatalf("%s: %v", s.server, err)
			}
		case <-giveUp:
			w.fatalf("%s: waited in vain for %s", s.server, what())
		}
	}
}

// awaitProgress asks for progress until an answer tells of the newest revision. It may answer an earlier request: it counts
// for the watchers created before that revision, and proves nothing of one created since.
func (w *watches) awaitProgress(s *side) {
	w.t.Helper()
	revision := w.store.revision
	s.mu.Lock()
	before := len(s.progress)
	s.mu.Unlock()
	last := func() int64 {
		if len(s.progress) == before {
			return 0
		}
		return s.progress[len(s.progress)-1]
	}
	if err := s.stream.Send(progressRequest()); err != nil {
		w.fatalf("%s: %v", s.server, err)
	}
	w.await(s, progressRequest(), func() string { return fmt.Sprintf("progress %d", revision) }, func() bool { return last() >= revision })
	if got := last(); got > revision {
		w.fatalf("%s: progress %d, but the newest revision is %d", s.server, got, revision)
	}
}

// sync waits until all watchers have heard what they are due, and checks it.
func (w *watches) sync() {
	w.t.Helper()
	w.syncJournals()
	for _, s := range w.streams {
		w.syncStream(s)
	}
	w.outcomes["watch: synchronised"]++
}

// syncForCompaction leaves no watcher that a compaction may or may not cancel: one that may still read history, though it
// finds nothing there, as its stream has not told of progress since.
func (w *watches) syncForCompaction() {
	w.t.Helper()
	w.sync()
	for _, s := range slices.Clone(w.streams) {
		var due []*pb.WatchResponse
		for _, watcher := range s.created {
			if watcher.live || watcher.cancelled || watcher.compacted != no {
				continue
			}
			if s.halfClosed {
				w.closeStream(s)
				break
			}
			w.send(s.sides, cancelRequest(watcher.id))
			due = append(due, w.cancelled(s, watcher))
		}
		w.awaitControls(s, due)
	}
}

func (w *watches) syncJournals() {
	w.t.Helper()
	var news [2][]*mvccpb.Event
	for i, side := range w.journals {
		w.awaitProgress(side)
		side.mu.Lock()
		all := side.watchers[0]
		news[i], all.events = all.events, nil
		side.mu.Unlock()
	}
	for _, event := range news[0] {
		w.journal.add(event)
	}
	due := make([]*mvccpb.Event, len(news[0]))
	for i, event := range news[0] {
		due[i] = w.journal.told(everything, event, w.store.compacted)
	}
	for i, side := range w.journals {
		w.compare(side, everything, due, news[i])
	}
}

func (w *watches) syncStream(s *watchStream) {
	w.t.Helper()
	revision, answers := w.store.revision, 0
	progressDue := len(s.inUse) > 0 && !s.halfClosed
	for _, watcher := range s.inUse {
		answers += w.extend(watcher, math.MaxInt64)
		progressDue = progressDue && watcher.request.StartRevision <= revision && watcher.compacted == no
	}
	for n, watcher := range s.created {
		if watcher.cancelled {
			answers += w.extend(watcher, watcher.until)
		}
		for i, side := range s.sides {
			w.settle(side, n, watcher, &watcher.checked[i])
		}
	}
	for i, side := range s.sides {
		if progressDue {
			w.awaitProgress(side)
			w.outcomes["watch: progress"]++
		}
		// Whoever heard too much was too late for the first look.
		for n, watcher := range s.created {
			w.settle(side, n, watcher, &watcher.checked[i])
		}
		side.mu.Lock()
		for _, heard := range side.watchers {
			heard.settled = true
		}
		if n := len(side.progress); s.silentFrom != 0 && !progressDue && n > 0 && side.progress[n-1] > s.silentFrom {
			w.fatalf("%s: progress %d was told though not every watcher has come that far", side.server, side.progress[n-1])
		}
		side.mu.Unlock()
	}
	switch {
	case progressDue:
		s.silentFrom = 0
	case s.silentFrom == 0:
		s.silentFrom = revision
	}
	for _, watcher := range s.created {
		if watcher.compacted == soon {
			watcher.compacted = done
		}
		watcher.settled = true
		watcher.judge(progressDue && watcher.born < revision, answers < queueSafe)
	}
}

// judge tells whether etcd certainly has nothing to read any more for a watcher that has heard all it is due: only then no
// compaction cancels it. That it has heard all is no proof, it may be due nothing. Proof is that
//   - progress was told since it was created, as that takes etcd to have done with all watchers of the stream; or
//   - it heard the last change of its keys, which ends the reading. Filters may keep that change from it, while etcd reads
//     on: it takes at most 1000 revisions at once; or
//   - it had nothing to read from the start.
//
// Without progress this holds only while the stream's queue had room: etcd sets a watcher aside whose answer finds none,
// and may read for it again even after it has heard all.
func (watcher *watching) judge(progress, roomy bool) {
	heard := len(watcher.due) > 0 && len(watcher.request.Filters) == 0
	watcher.live = progress || roomy && (watcher.live || heard)
}

// extend brings what a watcher is due up to the end of the journal, or to a revision, and tells in how many answers that
// comes at most.
func (w *watches) extend(watcher *watching, until int64) (answers int) {
	if watcher.compacted != no {
		return 0
	}
	last := int64(0)
	for ; watcher.scanned < len(w.journal.events); watcher.scanned++ {
		event := w.journal.events[watcher.scanned]
		if revision := event.Kv.ModRevision; revision >= watcher.start && revision <= until && wanted(watcher.request, event) {
			told := w.journal.told(watcher.request, event, w.store.compacted)
			watcher.due = append(watcher.due, told)
			if revision != last {
				last = revision
				answers++
			}
			w.outcomes["watch: event"]++
			if told.PrevKv != nil {
				w.outcomes["watch: event with prev_kv"]++
			}
		}
	}
	return answers
}

// settle waits until a side's nth watcher has heard what it is due, and checks all that was not checked yet.
func (w *watches) settle(s *side, n int, watcher *watching, checked *int) {
	w.t.Helper()
	heard := s.watchers[n]
	if watcher.until == 0 {
		w.await(s, nil, func() string {
			return fmt.Sprintf("%d events (and compaction: %t), having heard %d, of: %s",
				len(watcher.due), watcher.compacted == soon, len(heard.events), showMessage(watcher.request))
		}, func() bool {
			return len(heard.events) >= len(watcher.due) && (watcher.compacted != soon || heard.compacted != nil)
		})
	}
	s.mu.Lock()
	events, compacted := heard.events, heard.compacted
	s.mu.Unlock()
	due := watcher.due
	if watcher.until != 0 && len(events) < len(due) {
		if len(events) > 0 && events[len(events)-1].Kv.ModRevision == due[len(events)].Kv.ModRevision {
			w.fatalf("%s: revision %d was cut short", s.server, due[len(events)].Kv.ModRevision)
		}
		due = due[:len(events)]
	}
	due = due[*checked:]
	if !s.ours {
		due = w.excused(watcher, due, events[*checked:])
	}
	w.compare(s, watcher.request, due, events[*checked:])
	*checked = len(events)
	if compacted != nil {
		want := &pb.WatchResponse{
			Header: proto.Clone(compacted.Header).(*pb.ResponseHeader), WatchId: watcher.id, Canceled: true,
			CompactRevision: w.store.compacted,
		}
		want.Header.Revision = 0
		if watcher.compacted == no || watcher.compacted == soon && !proto.Equal(want, compacted) {
			w.fatalf("%s: cancelled: %s\nwatcher: %s", s.server, showMessage(compacted), showMessage(watcher.request))
		}
	}
}

// excused is what etcd may tell instead of what is due. It knows that a watcher wants previous values only a moment after
// that watcher exists, and no longer when it tells that it is cancelled: without them may come what the watcher hears of
// history, and what it hears last.
func (w *watches) excused(watcher *watching, due, got []*mvccpb.Event) []*mvccpb.Event {
	due = slices.Clone(due)
	for i := range min(len(due), len(got)) {
		history := due[i].Kv.ModRevision <= watcher.born
		if due[i].PrevKv != nil && got[i].PrevKv == nil && (history || watcher.until != 0) {
			due[i] = &mvccpb.Event{Type: due[i].Type, Kv: due[i].Kv}
			w.outcomes["watch: event without the prev_kv that etcd owes"]++
		}
	}
	return due
}

func (w *watches) compare(s *side, request *pb.WatchCreateRequest, due, got []*mvccpb.Event) {
	w.t.Helper()
	show := func(events []*mvccpb.Event, i int) string {
		if i >= len(events) {
			return "nothing"
		}
		return showMessage(events[i])
	}
	for i := range max(len(due), len(got)) {
		if i >= len(due) || i >= len(got) || !proto.Equal(due[i], got[i]) {
			w.fatalf("%s: event %d since the last synchronisation\nwatcher: %s\ndue: %s\ngot: %s",
				s.server, i, showMessage(request), show(due, i), show(got, i))
		}
	}
}

// burst sends a few requests on a stream at once and compares the answers that are due at once.
func (w *watches) burst() {
	w.t.Helper()
	var s *watchStream
	if len(w.streams) == 0 || len(w.streams) < streamsMax && w.oneIn(5) {
		s = w.openStream()
	} else {
		s = w.streams[w.random.IntN(len(w.streams))]
	}
	if s.halfClosed {
		return
	}
	settled := w.oneIn(3)
	if settled {
		w.sync()
	} else {
		for _, watcher := range s.inUse {
			watcher.settled = false
		}
	}
	s.silentFrom = 0
	historic := w.oneIn(3)
	var due []*pb.WatchResponse
	for range 1 + w.random.IntN(burstMax) {
		request, answer := w.request(s, historic)
		w.send(s.sides, request)
		if answer != nil {
			due = append(due, answer)
		}
	}
	w.awaitControls(s, due)
	for _, watcher := range s.created {
		if watcher.cancelled && watcher.until == 0 && watcher.compacted != perhaps {
			delete(s.soiled, watcher.id)
		}
	}
	if w.oneIn(50) {
		for _, side := range s.sides {
			if err := side.stream.CloseSend(); err != nil {
				w.fatalf("%s: %v", side.server, err)
			}
		}
		s.halfClosed = true
		w.outcomes["watch: half-closed"]++
	}
}

// awaitControls waits for the created, refused and cancelled answers and compares them.
func (w *watches) awaitControls(s *watchStream, due []*pb.WatchResponse) {
	w.t.Helper()
	for i, want := range due {
		n := s.controls + i
		var got [2]answer
		for i, side := range s.sides {
			w.await(side, nil, func() string { return showMessage(want) }, func() bool { return len(side.controls) > n })
			side.mu.Lock()
			got[i] = answer{message: side.controls[n]}
			side.mu.Unlock()
		}
		reference := proto.Clone(got[0].message).(*pb.WatchResponse)
		reference.Header = want.Header
		why := difference(createRequest(nil), got[0], got[1])
		if why == "" && (!proto.Equal(reference, want) || got[0].message.(*pb.WatchResponse).Header.Revision != w.store.revision) {
			why = "not as expected"
		}
		if why != "" {
			w.fatalf("%s\ndue: %s\nA: %s\nB: %s", why, showMessage(want), got[0].show(), got[1].show())
		}
	}
	s.controls += len(due)
}

// request makes a request and tells the control answer that is due; none for some.
func (w *watches) request(s *watchStream, historic bool) (*pb.WatchRequest, *pb.WatchResponse) {
	switch n := w.random.IntN(100); {
	case n < 60 && len(s.inUse) < watchersMax || len(s.inUse) == 0:
		return w.create(s, historic)
	case n < 88:
		return w.cancel(s)
	case n < 96:
		return progressRequest(), nil
	default:
		return &pb.WatchRequest{}, nil
	}
}

func (w *watches) create(s *watchStream, historic bool) (*pb.WatchRequest, *pb.WatchResponse) {
	key := w.keys.key()
	request := &pb.WatchCreateRequest{
		Key: key, RangeEnd: w.keys.rangeEnd(key), StartRevision: w.start(historic), WatchId: w.id(s),
		PrevKv: w.oneIn(2), ProgressNotify: w.oneIn(4), Fragment: w.oneIn(3),
	}
	if request.WatchId == 0 && s.soiled[s.automatic()] {
		request.WatchId = 1000 + w.random.Int64N(math.MaxInt32)
	}
	for w.oneIn(4) {
		filter := pb.WatchCreateRequest_FilterType(w.random.IntN(2))
		if w.oneIn(20) {
			filter = 9
		}
		request.Filters = append(request.Filters, filter)
	}
	return createRequest(request), w.created(s, request)
}

// created takes note of a create request and tells its answer.
func (w *watches) created(s *watchStream, request *pb.WatchCreateRequest) *pb.WatchResponse {
	request = proto.Clone(request).(*pb.WatchCreateRequest)
	if len(request.Key) == 0 {
		request.Key = []byte{0}
	}
	refused := func(reason string) *pb.WatchResponse {
		w.outcomes["watch: refused: "+reason]++
		return &pb.WatchResponse{WatchId: noWatcher, Created: true, Canceled: true, CancelReason: reason}
	}
	unbounded := len(request.RangeEnd) == 0 || bytes.Equal(request.RangeEnd, []byte{0})
	switch {
	case request.StartRevision < 0:
		return refused(textCompacted)
	case !unbounded && bytes.Compare(request.Key, request.RangeEnd) >= 0:
		return refused(textEmpty)
	case request.WatchId != 0 && s.inUse[request.WatchId] != nil:
		return refused(textDuplicate)
	}
	watcher := &watching{request: request, id: request.WatchId, start: request.StartRevision, born: w.store.revision}
	if watcher.id == 0 {
		watcher.id = s.automatic()
		s.next = watcher.id + 1
	}
	kind := "created"
	switch {
	case watcher.start == 0:
		watcher.start = w.store.revision + 1
	case watcher.start < w.store.compacted:
		watcher.compacted = soon
		kind = "created below the floor"
	case watcher.start == w.store.compacted:
		kind = "created at the floor"
	case watcher.start <= w.store.revision:
		kind = "created in the past"
	case watcher.start > w.store.revision+1:
		kind = "created in the future"
	}
	w.outcomes["watch: "+kind]++
	watcher.live = watcher.start > w.store.revision
	s.inUse[watcher.id] = watcher
	s.created = append(s.created, watcher)
	return &pb.WatchResponse{WatchId: watcher.id, Created: true}
}

// automatic is the id that the server chooses next.
func (s *watchStream) automatic() int64 {
	id := s.next
	for s.inUse[id] != nil {
		id++
	}
	return id
}

func (w *watches) start(historic bool) int64 {
	newest, floor := w.store.revision, max(w.store.compacted, 0)
	n := w.random.IntN(100)
	if historic {
		switch {
		case n < 20:
			return max(floor-1-w.random.Int64N(3), 0)
		case n < 30:
			return floor
		case n < 40:
			return floor + 1
		case n < 50:
			return newest
		case n < 60:
			return 1
		default:
			return 1 + w.random.Int64N(newest)
		}
	}
	switch {
	case n < 70:
		return 0
	case n < 80:
		return newest + 1
	case n < 90:
		return newest + 1 + w.random.Int64N(20)
	case n < 92:
		return math.MaxInt64 - w.random.Int64N(2)
	case n < 96:
		return []int64{-1, math.MinInt64}[w.random.IntN(2)]
	default:
		return 0
	}
}

// id mostly leaves the choice to the server.
func (w *watches) id(s *watchStream) int64 {
	if w.oneIn(2) {
		return 0
	}
	id := []int64{-5, noWatcher, 1, 2, 3, 7, 11, math.MaxInt64, math.MinInt64}[w.random.IntN(9)]
	if s.soiled[id] {
		return 0
	}
	return id
}

// cancel asks to cancel a watcher, or one that is not there.
func (w *watches) cancel(s *watchStream) (*pb.WatchRequest, *pb.WatchResponse) {
	var ids []int64
	for id, watcher := range s.inUse {
		// Of the id noWatcher etcd may send events after the cancelled answer.
		if id != noWatcher || watcher.settled {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	if len(ids) == 0 || w.oneIn(6) {
		id := 100 + w.random.Int64N(5)
		w.outcomes["watch: cancel of nobody"]++
		return cancelRequest(id), nil
	}
	id := ids[w.random.IntN(len(ids))]
	return cancelRequest(id), w.cancelled(s, s.inUse[id])
}

// cancelled takes note of a cancel request and tells its answer.
func (w *watches) cancelled(s *watchStream, watcher *watching) *pb.WatchResponse {
	delete(s.inUse, watcher.id)
	s.soiled[watcher.id] = true
	s.silentFrom = 0
	watcher.cancelled = true
	switch {
	case watcher.compacted == soon:
		watcher.compacted = perhaps
		w.outcomes["watch: cancelled before compacted"]++
	case watcher.compacted == done:
		w.outcomes["watch: cancelled after compacted"]++
	case watcher.settled:
		w.outcomes["watch: cancelled"]++
		watcher.scanned = math.MaxInt
	default:
		watcher.until = w.store.revision
		w.outcomes["watch: cancelled while behind"]++
	}
	return &pb.WatchResponse{WatchId: watcher.id, Canceled: true}
}

// restarted opens streams anew after the servers were killed, and resumes the watchers where they were.
func (w *watches) restarted() {
	w.t.Helper()
	old := w.streams
	w.streams = nil
	w.openJournals()
	for _, was := range old {
		if len(was.inUse) == 0 {
			continue
		}
		s := w.openStream()
		var due []*pb.WatchResponse
		for _, watcher := range was.created {
			if watcher.cancelled {
				continue
			}
			request := proto.Clone(watcher.request).(*pb.WatchCreateRequest)
			request.WatchId, request.StartRevision = watcher.id, watcher.start
			if n := len(watcher.due); n > 0 {
				request.StartRevision = watcher.due[n-1].Kv.ModRevision + 1
			}
			w.send(s.sides, createRequest(request))
			due = append(due, w.created(s, request))
			w.outcomes["watch: resumed"]++
		}
		w.awaitControls(s, due)
	}
}

// closeAll ends all streams; the servers are about to end, or the round is over.
func (w *watches) closeAll() {
	for _, side := range w.journals {
		side.cancel()
	}
	for _, s := range w.streams {
		for _, side := range s.sides {
			side.cancel()
		}
	}
}
