// The journal: what changed at each revision, and what a watcher must therefore be told.
package interop

import (
	"bytes"
	"maps"
	"slices"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// interval is a key, or the keys from it up to an end, as requests write them.
type interval struct{ key, end []byte }

func (i interval) covers(key []byte) bool {
	switch {
	case len(i.end) == 0:
		return bytes.Equal(i.key, key)
	case bytes.Equal(i.end, []byte{0}):
		return bytes.Compare(i.key, key) <= 0
	default:
		return bytes.Compare(i.key, key) <= 0 && bytes.Compare(key, i.end) < 0
	}
}

// journal is every change of a store from its first revision on, in order and without previous values.
type journal struct {
	events   []*mvccpb.Event
	versions map[string][]*mvccpb.Event
}

func newJournal() *journal { return &journal{versions: make(map[string][]*mvccpb.Event)} }

func (j *journal) add(event *mvccpb.Event) {
	plain := &mvccpb.Event{Type: event.Type, Kv: event.Kv}
	j.events = append(j.events, plain)
	j.versions[string(event.Kv.Key)] = append(j.versions[string(event.Kv.Key)], plain)
}

// find is the place of the first change at or after a revision.
func (j *journal) find(revision int64) int {
	return sort.Search(len(j.events), func(i int) bool { return j.events[i].Kv.ModRevision >= revision })
}

// at is the record of a key as of a revision; nil where it does not exist.
func (j *journal) at(key []byte, revision int64) *mvccpb.KeyValue {
	versions := j.versions[string(key)]
	n := sort.Search(len(versions), func(i int) bool { return versions[i].Kv.ModRevision > revision })
	if n == 0 || versions[n-1].Type == mvccpb.Event_DELETE {
		return nil
	}
	return versions[n-1].Kv
}

// storeAt is all keys as of a revision, in order.
func (j *journal) storeAt(revision int64) []*mvccpb.KeyValue {
	var kvs []*mvccpb.KeyValue
	for _, key := range slices.Sorted(maps.Keys(j.versions)) {
		if kv := j.at([]byte(key), revision); kv != nil {
			kvs = append(kvs, kv)
		}
	}
	return kvs
}

// isCreation tells a put of a key that was not there.
func isCreation(event *mvccpb.Event) bool {
	return event.Type == mvccpb.Event_PUT && event.Kv.CreateRevision == event.Kv.ModRevision
}

// wanted tells whether a watcher is to hear of a change at all, leaving its start aside.
func wanted(watch *pb.WatchCreateRequest, event *mvccpb.Event) bool {
	for _, filter := range watch.Filters {
		if filter == pb.WatchCreateRequest_NOPUT && event.Type == mvccpb.Event_PUT ||
			filter == pb.WatchCreateRequest_NODELETE && event.Type == mvccpb.Event_DELETE {
			return false
		}
	}
	return interval{watch.Key, watch.RangeEnd}.covers(event.Kv.Key)
}

// told is a change as the watcher hears it while history begins at the floor.
func (j *journal) told(watch *pb.WatchCreateRequest, event *mvccpb.Event, floor int64) *mvccpb.Event {
	before := event.Kv.ModRevision - 1
	if !watch.PrevKv || isCreation(event) || before < floor {
		return event
	}
	return &mvccpb.Event{Type: event.Type, Kv: event.Kv, PrevKv: j.at(event.Kv.Key, before)}
}
