// One server's end of a watch stream: all that came on it, and what is wrong with it whatever the other server says.
package interop

import (
	"context"
	"fmt"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// noWatcher is the id of answers that belong to no watcher or to all; a client may still ask for it as its own.
const noWatcher = -1

// side is a stream on one server and what was heard on it.
type side struct {
	server string
	ours   bool
	stream pb.Watch_WatchClient
	cancel context.CancelFunc
	// changed holds a token when anything came since it was last taken.
	changed chan struct{}

	mu sync.Mutex
	// controls are the created, refused and cancelled answers, but for cancels by compaction; they come in the order of requests.
	controls []*pb.WatchResponse
	// watchers are all that were created, in that order; current are those not cancelled by request.
	watchers []*heard
	current  map[int64]*heard
	// early are events of a watcher that asked for the id noWatcher, from before its created answer.
	early    []*pb.WatchResponse
	progress []int64
	// parted is the watcher whose answer is coming in fragments.
	parted    *heard
	fragments int
	faults    []string
	err       error
}

// heard is what one watcher heard.
type heard struct {
	id        int64
	events    []*mvccpb.Event
	compacted *pb.WatchResponse
	// last is the revision of the last event, progress that of the last progress answer.
	last, progress int64
	// settled: it had heard all at the last synchronisation. As yet unsettled it may hear of progress told for the others:
	// etcd can send a created answer before the answer to a progress request that came first.
	settled bool
}

// listen opens a stream on a server.
func (s *server) listen() (*side, error) {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := pb.NewWatchClient(s.conn).Watch(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	side := &side{server: s.name, ours: s.ours, stream: stream, cancel: cancel, changed: make(chan struct{}, 1), current: make(map[int64]*heard)}
	go side.receive()
	return side, nil
}

func (s *side) receive() {
	for {
		response, err := s.stream.Recv()
		s.mu.Lock()
		if err != nil {
			s.err = err
		} else {
			s.hear(response)
		}
		s.mu.Unlock()
		select {
		case s.changed <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

func (s *side) fault(r *pb.WatchResponse, format string, args ...any) {
	s.faults = append(s.faults, fmt.Sprintf(format, args...)+": "+showMessage(r))
}

// hear takes one answer in.
func (s *side) hear(r *pb.WatchResponse) {
	w := s.current[r.WatchId]
	if s.parted != nil && (len(r.Events) == 0 || s.parted != w) {
		s.fault(r, "it stands between the fragments of another answer")
	}
	switch {
	case r.Created:
		s.controls = append(s.controls, r)
		if r.Canceled {
			return
		}
		if w != nil {
			s.fault(r, "the id is in use")
		}
		w = &heard{id: r.WatchId}
		s.watchers = append(s.watchers, w)
		s.current[w.id] = w
		if w.id == noWatcher {
			early := s.early
			s.early = nil
			for _, r := range early {
				s.hearEvents(w, r)
			}
		}
	case r.Canceled && r.CompactRevision == 0:
		s.controls = append(s.controls, r)
		if w == nil {
			s.fault(r, "no such watcher")
		}
		delete(s.current, r.WatchId)
	case w == nil && r.WatchId == noWatcher && len(r.Events) > 0:
		s.early = append(s.early, r)
	case w == nil && r.WatchId != noWatcher:
		s.fault(r, "no such watcher")
	case r.Canceled:
		if w.compacted != nil {
			s.fault(r, "cancelled before")
		}
		w.compacted = r
	case len(r.Events) > 0:
		s.hearEvents(w, r)
	case r.WatchId == noWatcher:
		s.hearProgress(r)
	default:
		s.fault(r, "nothing is in it")
	}
}

func (s *side) hearProgress(r *pb.WatchResponse) {
	s.progress = append(s.progress, r.Header.Revision)
	for _, w := range s.current {
		if !w.settled {
			continue
		}
		if w.compacted == nil && r.Header.Revision < w.last {
			s.fault(r, "progress from before the last event, of revision %d", w.last)
		}
		w.progress = r.Header.Revision
	}
}

func (s *side) hearEvents(w *heard, r *pb.WatchResponse) {
	first, last := r.Events[0].Kv.ModRevision, r.Events[len(r.Events)-1].Kv.ModRevision
	continued := s.parted == w
	switch {
	case w.compacted != nil:
		s.fault(r, "events of a cancelled watcher")
	case first < w.last, first == w.last && !continued:
		s.fault(r, "events after those of revision %d", w.last)
	case first <= w.progress && !continued:
		s.fault(r, "events after progress %d", w.progress)
	case r.Header.Revision < last:
		s.fault(r, "events from after its header's revision")
	}
	for i := 1; i < len(r.Events); i++ {
		if r.Events[i].Kv.ModRevision < r.Events[i-1].Kv.ModRevision {
			s.fault(r, "events out of order")
		}
	}
	w.events = append(w.events, r.Events...)
	w.last = last
	s.parted = nil
	if r.Fragment {
		s.parted = w
		s.fragments++
	}
}

// What a server must never send is seen without a second one.
func TestSideSeesFaults(t *testing.T) {
	created := func(id int64) *pb.WatchResponse { return &pb.WatchResponse{WatchId: id, Created: true} }
	events := func(id, header int64, revisions ...int64) *pb.WatchResponse {
		r := &pb.WatchResponse{WatchId: id, Header: &pb.ResponseHeader{Revision: header}}
		for _, revision := range revisions {
			r.Events = append(r.Events, &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte("k"), ModRevision: revision}})
		}
		return r
	}
	fragment := func(r *pb.WatchResponse) *pb.WatchResponse {
		r.Fragment = true
		return r
	}
	progress := func(revision int64) *pb.WatchResponse { return events(noWatcher, revision) }
	cancelled := func(id, compaction int64) *pb.WatchResponse {
		return &pb.WatchResponse{WatchId: id, Canceled: true, CompactRevision: compaction}
	}
	refused := &pb.WatchResponse{WatchId: noWatcher, Created: true, Canceled: true}
	for _, c := range []struct {
		name   string
		faulty bool
		heard  []*pb.WatchResponse
	}{
		{"a whole life", false, []*pb.WatchResponse{created(0), refused, events(0, 9, 3, 3, 5), progress(9), events(0, 10, 10), cancelled(0, 0), created(0)}},
		{"fragments", false, []*pb.WatchResponse{created(0), fragment(events(0, 9, 3, 4)), events(0, 9, 4, 5), progress(5)}},
		{"cancelled twice after a compaction", false, []*pb.WatchResponse{created(0), cancelled(0, 7), cancelled(0, 0)}},
		{"the watcher -1", false, []*pb.WatchResponse{events(-1, 3, 3), created(-1), progress(3), events(-1, 4, 4), cancelled(-1, 0)}},
		{"events before created", true, []*pb.WatchResponse{events(0, 3, 3), created(0)}},
		{"events after cancelled", true, []*pb.WatchResponse{created(0), cancelled(0, 0), events(0, 3, 3)}},
		{"events after compacted", true, []*pb.WatchResponse{created(0), cancelled(0, 2), events(0, 3, 3)}},
		{"created twice", true, []*pb.WatchResponse{created(0), created(0)}},
		{"cancelled by nobody", true, []*pb.WatchResponse{cancelled(0, 0)}},
		{"repeated", true, []*pb.WatchResponse{created(0), events(0, 3, 3), events(0, 3, 3)}},
		{"split", true, []*pb.WatchResponse{created(0), events(0, 4, 3, 4), events(0, 5, 4, 5)}},
		{"reordered", true, []*pb.WatchResponse{created(0), events(0, 5, 4, 3)}},
		{"ahead of its header", true, []*pb.WatchResponse{created(0), events(0, 3, 4)}},
		{"after progress", true, []*pb.WatchResponse{created(0), progress(4), events(0, 5, 4)}},
		{"progress before an event that came", true, []*pb.WatchResponse{created(0), events(0, 5, 4), progress(3)}},
		{"between fragments", true, []*pb.WatchResponse{created(0), created(1), fragment(events(0, 9, 3)), events(1, 9, 3), events(0, 9, 4)}},
		{"progress between fragments", true, []*pb.WatchResponse{created(0), fragment(events(0, 9, 3)), progress(9), events(0, 9, 4)}},
		{"empty", true, []*pb.WatchResponse{created(0), events(0, 9)}},
	} {
		s := &side{current: make(map[int64]*heard)}
		for _, r := range c.heard {
			s.hear(r)
			for _, w := range s.watchers {
				w.settled = true
			}
		}
		if faulty := len(s.faults) > 0; faulty != c.faulty {
			t.Errorf("%s: faults: %v", c.name, s.faults)
		}
	}
}
