// What etcd guarantees of a watch, checked against all that happened: ordered, unique, reliable, atomic, resumable,
// bookmarkable; and each event whole, wanted, and with the right previous value.
package interop

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// history is all that happened, and where the order of a revision's changes is not known.
type history struct {
	*journal
	unordered map[int64]bool
}

// watched is what one call of Watch brought, from its start to its end.
type watched struct {
	// start is the first revision asked for; 0 for whatever comes next.
	start int64
	// known is a revision that had been answered before the call.
	known   int64
	answers []watchAnswer
}

type watchAnswer struct {
	clientv3.WatchResponse
	// compacting is the greatest revision that anyone had asked to compact at when this came.
	compacting int64
}

// check tells what is wrong with a watch; nil if nothing is.
func (h *history) check(watch *pb.WatchCreateRequest, w *watched) error {
	at := w.start // the next revision that it may hear of
	last := int64(0)
	fresh := w.start == 0 // it has not shown yet where it begins
	place := h.find(at)
	next := func() *mvccpb.Event {
		for place < len(h.events) && (h.events[place].Kv.ModRevision < at || !wanted(watch, h.events[place])) {
			place++
		}
		if place == len(h.events) {
			return nil
		}
		return h.events[place]
	}
	for i, a := range w.answers {
		header := a.Header.GetRevision()
		switch {
		case a.Created:
			if i != 0 {
				return fmt.Errorf("created after %d answers", i)
			}
			if fresh {
				// A change at the header's revision, or before it, may still come: the header is read after the watcher is there.
				at = header + 1
				place = h.find(at)
			}
		case a.CompactRevision != 0:
			resumed := at
			if fresh {
				resumed-- // the client resumes a watch that heard nothing at the created answer's revision
			}
			if a.CompactRevision <= resumed || a.CompactRevision > a.compacting {
				return fmt.Errorf("cancelled by a compaction at %d, but it stood at %d, and %d was the greatest compaction", a.CompactRevision, at, a.compacting)
			}
			if i != len(w.answers)-1 {
				return fmt.Errorf("%d answers after the end", len(w.answers)-1-i)
			}
		case a.Canceled:
		case len(a.Events) == 0:
			if event := next(); event != nil && event.Kv.ModRevision <= header {
				return fmt.Errorf("progress %d before the change of revision %d", header, event.Kv.ModRevision)
			}
			if header < last {
				return fmt.Errorf("progress %d after the change of revision %d", header, last)
			}
			at = max(at, header+1)
			fresh = false
		default:
			for events := a.Events; len(events) > 0; {
				revision := events[0].Kv.ModRevision
				if fresh && revision < at && revision >= w.known {
					at = revision
					place = h.find(at)
				}
				fresh = false
				first := next()
				switch {
				case revision < at:
					return fmt.Errorf("revision %d after %d: repeated, split or out of order", revision, at-1)
				case first == nil || revision < first.Kv.ModRevision:
					return fmt.Errorf("revision %d holds no change that was asked for", revision)
				case revision > first.Kv.ModRevision:
					return fmt.Errorf("revision %d is missing before %d", first.Kv.ModRevision, revision)
				}
				n := 1
				for n < len(events) && events[n].Kv.ModRevision == revision {
					n++
				}
				var due []*mvccpb.Event
				for event := first; event != nil && event.Kv.ModRevision == revision; event = next() {
					due = append(due, event)
					place++
				}
				if err := h.checkRevision(watch, due, events[:n], a.compacting); err != nil {
					return fmt.Errorf("revision %d: %w", revision, err)
				}
				events, at, last = events[n:], revision+1, revision
			}
			if header < last {
				return fmt.Errorf("revision %d under a header of revision %d", last, header)
			}
		}
	}
	return nil
}

// checkRevision compares the changes of one revision.
func (h *history) checkRevision(watch *pb.WatchCreateRequest, due, got []*mvccpb.Event, compacting int64) error {
	if len(due) != len(got) {
		return fmt.Errorf("%d events of %d", len(got), len(due))
	}
	if h.unordered[due[0].Kv.ModRevision] {
		byKey := func(a, b *mvccpb.Event) int { return bytes.Compare(a.Kv.Key, b.Kv.Key) }
		due, got = slices.SortedFunc(slices.Values(due), byKey), slices.SortedFunc(slices.Values(got), byKey)
	}
	for i, event := range got {
		before := event.Kv.ModRevision - 1
		existed := h.at(event.Kv.Key, before) != nil
		want := h.told(watch, due[i], 0)
		if watch.PrevKv && event.PrevKv == nil && compacting > before {
			want = due[i] // what it was before may be gone
		}
		put := event.Type == mvccpb.Event_PUT
		switch {
		case !proto.Equal(want, event):
			return fmt.Errorf("event %d: %s instead of %s", i, showMessage(event), showMessage(want))
		case event.IsCreate() != (put && !existed) || event.IsModify() != (put && existed):
			return fmt.Errorf("event %d: created: %t, modified: %t, though that it existed is %t", i, event.IsCreate(), event.IsModify(), existed)
		}
	}
	return nil
}

// The check itself: a right watch is right, and each way to spoil it is seen.
func TestHistoryCheckSeesFaults(t *testing.T) {
	put := func(key string, revision, created, version int64) *mvccpb.Event {
		kv := &mvccpb.KeyValue{Key: []byte(key), ModRevision: revision, CreateRevision: created, Version: version, Value: fmt.Append(nil, revision)}
		return &mvccpb.Event{Kv: kv}
	}
	del := func(key string, revision int64) *mvccpb.Event {
		return &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: revision}}
	}
	h := &history{journal: newJournal(), unordered: map[int64]bool{5: true}}
	for _, event := range []*mvccpb.Event{
		put("a", 2, 2, 1), put("b", 3, 3, 1), put("a", 3, 2, 2), del("a", 4), put("b", 5, 3, 2), put("c", 5, 5, 1), put("x", 6, 6, 1), put("a", 7, 7, 1),
	} {
		h.add(event)
	}
	all := &pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("d"), PrevKv: true}
	// right is a faultless watch of [a, d) from 2 on: an answer a revision.
	right := func() []watchAnswer {
		answers := []watchAnswer{{WatchResponse: clientv3.WatchResponse{Created: true, Header: &pb.ResponseHeader{Revision: 3}}}}
		for revision := int64(2); revision <= 7; revision++ {
			a := watchAnswer{WatchResponse: clientv3.WatchResponse{Header: &pb.ResponseHeader{Revision: revision}}}
			for _, event := range h.events {
				if event.Kv.ModRevision == revision && wanted(all, event) {
					a.Events = append(a.Events, proto.Clone(h.told(all, event, 0)).(*mvccpb.Event))
				}
			}
			if len(a.Events) > 0 {
				answers = append(answers, a)
			}
		}
		return answers
	}
	progress := func(revision int64) watchAnswer {
		return watchAnswer{WatchResponse: clientv3.WatchResponse{Header: &pb.ResponseHeader{Revision: revision}}}
	}
	compacted := func(at, asked int64) watchAnswer {
		return watchAnswer{WatchResponse: clientv3.WatchResponse{Header: &pb.ResponseHeader{}, Canceled: true, CompactRevision: at}, compacting: asked}
	}
	for _, c := range []struct {
		name, fault string
		spoil       func(w *watched)
	}{
		{"right", "", func(*watched) {}},
		{"batched", "", func(w *watched) {
			w.answers[2].Events = append(w.answers[2].Events, w.answers[3].Events...)
			w.answers[2].Header.Revision = 9
			w.answers = slices.Delete(w.answers, 3, 4)
		}},
		{"ends early", "", func(w *watched) { w.answers = w.answers[:3] }},
		{"from now", "", func(w *watched) { w.start, w.answers = 0, slices.Delete(w.answers, 1, 3) }},
		{"from now, just before its header", "", func(w *watched) { w.start, w.known, w.answers = 0, 2, slices.Delete(w.answers, 1, 2) }},
		{"progress", "", func(w *watched) { w.answers = slices.Insert(w.answers, 5, progress(5), progress(6)) }},
		{"another order where none is known", "", func(w *watched) { slices.Reverse(w.answers[4].Events) }},
		{"no previous value below a compaction", "", func(w *watched) { w.answers[3].Events[0].PrevKv, w.answers[3].compacting = nil, 4 }},
		{"compacted", "", func(w *watched) { w.answers = append(w.answers[:2], compacted(5, 6)) }},

		{"lost", "revision 3 is missing before 4", func(w *watched) { w.answers = slices.Delete(w.answers, 2, 3) }},
		{"lost at first", "revision 2 is missing before 3", func(w *watched) { w.answers = slices.Delete(w.answers, 1, 2) }},
		{"lost at first, from now", "revision 4 is missing before 5", func(w *watched) { w.start, w.known, w.answers = 0, 3, slices.Delete(w.answers, 1, 4) }},
		{"from before it began", "repeated", func(w *watched) { w.start, w.known = 0, 3 }},
		{"lost in part", "1 events of 2", func(w *watched) { w.answers[2].Events = w.answers[2].Events[:1] }},
		{"repeated", "repeated", func(w *watched) { w.answers = slices.Insert(w.answers, 3, w.answers[2]) }},
		{"repeated in an answer", "2 events of 1", func(w *watched) { w.answers[1].Events = append(w.answers[1].Events, w.answers[1].Events...) }},
		{"reordered", "revision 2 is missing", func(w *watched) { w.answers[1], w.answers[2] = w.answers[2], w.answers[1] }},
		{"reordered in a revision", "instead of", func(w *watched) { slices.Reverse(w.answers[2].Events) }},
		{"split", "1 events of 2", func(w *watched) {
			w.answers = slices.Insert(w.answers, 3, w.answers[2])
			w.answers[2].Events, w.answers[3].Events = w.answers[2].Events[:1], w.answers[3].Events[1:]
		}},
		{"of another key", "no change that was asked for", func(w *watched) {
			w.answers = slices.Insert(w.answers, 5, watchAnswer{WatchResponse: clientv3.WatchResponse{Header: &pb.ResponseHeader{Revision: 6}, Events: []*mvccpb.Event{put("x", 6, 6, 1)}}})
		}},
		{"event before progress", "progress 4 before the change of revision 3", func(w *watched) { w.answers = slices.Insert(w.answers, 2, progress(4)) }},
		{"event after progress", "repeated", func(w *watched) { w.answers = slices.Insert(w.answers, 4, progress(4), w.answers[3]) }},
		{"progress from the past", "progress 2 after", func(w *watched) { w.answers = slices.Insert(w.answers, 3, progress(2)) }},
		{"ahead of its header", "under a header", func(w *watched) { w.answers[3].Header = &pb.ResponseHeader{Revision: 3} }},
		{"no previous value", "instead of", func(w *watched) { w.answers[3].Events[0].PrevKv = nil }},
		{"previous value lost to a compaction that cannot have taken it", "instead of", func(w *watched) { w.answers[3].Events[0].PrevKv, w.answers[3].compacting = nil, 3 }},
		{"wrong previous value", "instead of", func(w *watched) { w.answers[3].Events[0].PrevKv.Value = []byte("?") }},
		{"previous value of a creation", "instead of", func(w *watched) { w.answers[5].Events[0].PrevKv = w.answers[3].Events[0].PrevKv }},
		{"wrong value", "instead of", func(w *watched) { w.answers[1].Events[0].Kv.Value = nil }},
		{"wrong type", "instead of", func(w *watched) { w.answers[3].Events[0].Type = mvccpb.Event_PUT }},
		{"created again", "after 1 answers", func(w *watched) { w.answers = slices.Insert(w.answers, 1, w.answers[0]) }},
		{"compacted above the floor", "it stood at 3", func(w *watched) { w.answers = append(w.answers[:2], compacted(3, 6)) }},
		{"compacted by nobody", "was the greatest", func(w *watched) { w.answers = append(w.answers[:2], compacted(5, 4)) }},
		{"events after compacted", "after the end", func(w *watched) { w.answers = slices.Insert(w.answers, 2, compacted(5, 6)) }},
	} {
		w := &watched{start: 2, answers: right()}
		c.spoil(w)
		err := h.check(all, w)
		if c.fault == "" && err != nil || c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	filtered := &pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("d"), PrevKv: true, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}}
	if err := h.check(filtered, &watched{start: 2, answers: right()}); err == nil || !strings.Contains(err.Error(), "no change that was asked for") {
		t.Errorf("a filtered event: %v", err)
	}
}
