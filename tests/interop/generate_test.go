// Random requests for the differential fuzzer: few keys, so that requests meet, and faults of every kind.
package interop

import (
	"bytes"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

const (
	nestingMax      = 3
	opsInBranchMax  = 5
	requestTooLarge = 1_600_000 // above etcd's limit for logged requests, below gRPC's
	messageTooLarge = 2_200_000 // above gRPC's
)

// leaseIDs are few, so that puts meet leases that are there.
var leaseIDs = []int64{-1, 1, 2, math.MinInt64}

// generator makes requests that suit what the servers hold.
//
// etcd refuses most txns that delete and put one key, but its check has holes, and what passes through them can end its
// process: when the store is compacted at just that revision (its issue 22376), and when the put follows the delete and
// asks to keep the value or the lease that is gone. So a generator either compacts or makes txns that use the holes,
// never both, and the puts of those keep nothing.
type generator struct {
	random   *rand.Rand
	keys     [][]byte
	compacts bool

	// Told by the fuzzer after each answer.
	revision, compacted int64
}

func newGenerator(random *rand.Rand, wide, compacts bool) *generator {
	g := &generator{random: random, compacts: compacts, revision: 1, compacted: -1}
	for _, key := range []string{"\x00", "a", "a\x00", "aa", "ab", "b", "ba", "c", "\xff", "\xff\xff"} {
		g.keys = append(g.keys, []byte(key))
	}
	if wide {
		for c := 'd'; c <= 'z'; c++ {
			g.keys = append(g.keys, []byte(string(c)))
		}
	}
	return g
}

// streamed marks a range request to be sent as RangeStream.
type streamed struct{ *pb.RangeRequest }

// request makes the next request.
func (g *generator) request() proto.Message {
	switch n := g.random.IntN(1000); {
	case n < 250:
		return g.rangeRequest()
	case n < 320:
		return g.rangeStreamRequest()
	case n < 560:
		return g.put()
	case n < 660:
		return g.deleteRange()
	case n < 940:
		return g.txn()
	case n < 970:
		return g.compaction()
	case n < 971:
		return &pb.PutRequest{Key: g.key(), Value: bytes.Repeat([]byte{'x'}, requestTooLarge)}
	case n < 972:
		return &pb.RangeRequest{Key: bytes.Repeat([]byte{'x'}, messageTooLarge)}
	case n < 976:
		return g.manyOps()
	case n < 992:
		return g.aboutLease()
	default:
		return &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: g.someRevision()}
	}
}

// aboutLease grants leases that outlive the run, and asks for some that are not there.
func (g *generator) aboutLease() proto.Message {
	id := leaseIDs[g.random.IntN(len(leaseIDs))]
	switch g.random.IntN(9) {
	case 8:
		return &pb.LeaseLeasesRequest{}
	case 0:
		return &pb.LeaseRevokeRequest{ID: id}
	case 1:
		return &pb.LeaseKeepAliveRequest{ID: id}
	case 2, 3:
		return &pb.LeaseTimeToLiveRequest{ID: id, Keys: g.oneIn(2)}
	case 4:
		return &pb.LeaseGrantRequest{ID: id, TTL: []int64{9_000_000_000, 9_000_000_001, math.MaxInt64}[g.random.IntN(3)]}
	default:
		return &pb.LeaseGrantRequest{ID: id, TTL: 10_000 + g.random.Int64N(1000)}
	}
}

func (g *generator) oneIn(n int) bool { return g.random.IntN(n) == 0 }

func (g *generator) key() []byte {
	if g.oneIn(60) {
		return nil
	}
	return g.keys[g.random.IntN(len(g.keys))]
}

func (g *generator) rangeEnd(key []byte) []byte {
	switch n := g.random.IntN(100); {
	case n < 35:
		return nil
	case n < 55:
		return prefixEnd(key)
	case n < 85:
		return g.keys[g.random.IntN(len(g.keys))]
	case n < 97:
		return []byte{0}
	case n < 98:
		return []byte{0, 0}
	default:
		return key
	}
}

func prefixEnd(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			end := bytes.Clone(prefix[:i+1])
			end[i]++
			return end
		}
	}
	return []byte{0}
}

func (g *generator) value() []byte {
	switch n := g.random.IntN(100); {
	case n < 10:
		return nil
	case n < 70:
		return []byte{byte('0' + g.random.IntN(4))}
	case n < 99:
		value := make([]byte, g.random.IntN(60))
		for i := range value {
			value[i] = byte(g.random.Uint32())
		}
		return value
	default:
		return []byte(strings.Repeat("long", 5000))
	}
}

// someRevision draws from history, from its edges and from beyond them.
func (g *generator) someRevision() int64 {
	switch n := g.random.IntN(100); {
	case n < 60:
		low := max(g.compacted, 1)
		return low + g.random.Int64N(g.revision-low+1)
	case n < 75:
		return g.revision - g.random.Int64N(min(g.revision, 5))
	case n < 80:
		return g.revision + 1 + g.random.Int64N(2)
	case n < 92:
		return g.compacted - 1 + g.random.Int64N(3)
	case n < 94:
		return -1 - g.random.Int64N(3)
	case n < 95:
		return math.MaxInt64
	case n < 96:
		return math.MinInt64
	default:
		return g.random.Int64N(g.revision + 1)
	}
}

func (g *generator) lease() int64 {
	switch g.random.IntN(25) {
	case 0:
		return 1 + g.random.Int64N(1000)
	case 1, 2, 3, 4, 5:
		return leaseIDs[g.random.IntN(len(leaseIDs))]
	default:
		return 0
	}
}

func (g *generator) rangeRequest() *pb.RangeRequest {
	key := g.key()
	r := &pb.RangeRequest{Key: key, RangeEnd: g.rangeEnd(key), Serializable: g.oneIn(3), KeysOnly: g.oneIn(6), CountOnly: g.oneIn(10)}
	if g.oneIn(2) {
		r.Revision = g.someRevision()
	}
	if g.oneIn(3) {
		r.Limit = g.limit()
	}
	if g.oneIn(2) {
		r.SortOrder = pb.RangeRequest_SortOrder(g.random.IntN(3))
		r.SortTarget = pb.RangeRequest_SortTarget(g.random.IntN(5))
	}
	if g.oneIn(60) {
		r.SortOrder = pb.RangeRequest_SortOrder(g.random.IntN(6) - 1)
	}
	if g.oneIn(60) {
		r.SortTarget = pb.RangeRequest_SortTarget(g.random.IntN(8) - 1)
	}
	if g.oneIn(4) {
		for _, filter := range []*int64{&r.MinModRevision, &r.MaxModRevision, &r.MinCreateRevision, &r.MaxCreateRevision} {
			if g.oneIn(2) {
				*filter = g.someRevision()
			}
		}
	}
	return r
}

func (g *generator) limit() int64 {
	switch g.random.IntN(10) {
	case 0:
		return -1
	case 1:
		return math.MaxInt64
	default:
		return g.random.Int64N(14)
	}
}

// rangeStreamRequest leaves out the one thing that etcd streams wrongly: no order, but another target than the key.
func (g *generator) rangeStreamRequest() proto.Message {
	r := g.rangeRequest()
	if !g.oneIn(8) {
		r.MinModRevision, r.MaxModRevision, r.MinCreateRevision, r.MaxCreateRevision = 0, 0, 0, 0
		r.SortOrder = pb.RangeRequest_NONE
	}
	if r.SortOrder == pb.RangeRequest_NONE {
		r.SortTarget = pb.RangeRequest_KEY
	}
	return streamed{r}
}

func (g *generator) put() *pb.PutRequest {
	p := &pb.PutRequest{Key: g.key(), Lease: g.lease(), PrevKv: g.oneIn(3), IgnoreLease: g.oneIn(8), IgnoreValue: g.oneIn(8)}
	if !p.IgnoreValue || g.oneIn(5) {
		p.Value = g.value()
	}
	return p
}

func (g *generator) deleteRange() *pb.DeleteRangeRequest {
	key := g.key()
	d := &pb.DeleteRangeRequest{Key: key, PrevKv: g.oneIn(2)}
	if g.oneIn(2) {
		d.RangeEnd = g.rangeEnd(key)
	}
	return d
}

func (g *generator) compaction() *pb.CompactionRequest {
	c := &pb.CompactionRequest{Physical: g.oneIn(3)}
	switch n := g.random.IntN(10); {
	case !g.compacts:
		c.Revision = []int64{-1, g.revision + 1, math.MaxInt64, math.MinInt64}[g.random.IntN(4)]
	case n < 6:
		// A short step, so that history stays to be read.
		low := max(g.compacted, 1)
		c.Revision = low + g.random.Int64N(min(g.revision-low+1, 30))
	case n < 8:
		c.Revision = g.compacted - g.random.Int64N(3)
	case n < 9:
		c.Revision = g.revision + 1
	default:
		c.Revision = g.someRevision()
	}
	return c
}

func (g *generator) txn() *pb.TxnRequest {
	t := g.txnOfDepth(1)
	for changesKeyTwice(t) && (g.compacts || keepsSomething(t.Success) || keepsSomething(t.Failure)) {
		t = g.txnOfDepth(1)
	}
	return t
}

func (g *generator) txnOfDepth(depth int) *pb.TxnRequest {
	t := new(pb.TxnRequest)
	for range g.random.IntN(3) {
		t.Compare = append(t.Compare, g.compare())
	}
	readOnly := g.oneIn(6)
	for _, branch := range []*[]*pb.RequestOp{&t.Success, &t.Failure} {
		for range g.random.IntN(opsInBranchMax) {
			*branch = append(*branch, g.op(depth, readOnly))
		}
	}
	return t
}

func (g *generator) op(depth int, readOnly bool) *pb.RequestOp {
	n := g.random.IntN(100)
	switch {
	case n == 0:
		return &pb.RequestOp{}
	case n < 35 || readOnly:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: g.rangeInTxn()}}
	case n < 65:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: g.put()}}
	case n < 82 || depth == nestingMax:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: g.deleteRange()}}
	default:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: g.txnOfDepth(depth + 1)}}
	}
}

// rangeInTxn mostly reads the present: a revision out of history fails the whole txn.
func (g *generator) rangeInTxn() *pb.RangeRequest {
	r := g.rangeRequest()
	if !g.oneIn(4) {
		r.Revision = 0
	}
	return r
}

func (g *generator) compare() *pb.Compare {
	c := &pb.Compare{Key: g.key(), Result: pb.Compare_CompareResult(g.random.IntN(4)), Target: pb.Compare_CompareTarget(g.random.IntN(5))}
	if g.oneIn(3) {
		c.RangeEnd = g.rangeEnd(c.Key)
	}
	operand := int(c.Target)
	if g.oneIn(12) {
		operand = g.random.IntN(6)
	}
	switch operand {
	case 0:
		c.TargetUnion = &pb.Compare_Version{Version: g.random.Int64N(5)}
	case 1:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: g.knownRevision()}
	case 2:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: g.knownRevision()}
	case 3:
		c.TargetUnion = &pb.Compare_Value{Value: g.value()}
	case 4:
		c.TargetUnion = &pb.Compare_Lease{Lease: g.random.Int64N(3) - 1}
	}
	if g.oneIn(40) {
		c.Result = pb.Compare_CompareResult(g.random.IntN(8) - 2)
	}
	if g.oneIn(40) {
		c.Target = pb.Compare_CompareTarget(g.random.IntN(9) - 2)
	}
	return c
}

func (g *generator) knownRevision() int64 {
	if g.oneIn(4) {
		return 0
	}
	return g.someRevision()
}

// manyOps makes a txn about the limit of 128 operations, at the top or with its last one nested.
func (g *generator) manyOps() *pb.TxnRequest {
	t := new(pb.TxnRequest)
	for range 126 + g.random.IntN(4) {
		read := &pb.RangeRequest{Key: g.keys[g.random.IntN(len(g.keys))]}
		t.Success = append(t.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: read}})
	}
	if g.oneIn(4) {
		t.Success[0].GetRequestRange().Key = nil
	}
	if g.oneIn(2) {
		inner := new(pb.TxnRequest)
		for range g.random.IntN(4) {
			inner.Compare = append(inner.Compare, g.compare())
		}
		t.Success[len(t.Success)-1] = &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: inner}}
	}
	return t
}

// changesKeyTwice tells whether a txn could put and delete one key in the same revision although etcd's check lets it pass:
// by a delete without an upper bound, or by a delete in a nested txn and a put outside of it. It may err to the safe side.
func changesKeyTwice(t *pb.TxnRequest) bool {
	var puts []placed
	var deletes []placed
	var collect func(branch []*pb.RequestOp, list string)
	collect = func(branch []*pb.RequestOp, list string) {
		for i, op := range branch {
			switch op := op.Request.(type) {
			case *pb.RequestOp_RequestPut:
				puts = append(puts, placed{list, interval{op.RequestPut.Key, nil}})
			case *pb.RequestOp_RequestDeleteRange:
				deletes = append(deletes, placed{list, interval{op.RequestDeleteRange.Key, op.RequestDeleteRange.RangeEnd}})
			case *pb.RequestOp_RequestTxn:
				inner := list + string(rune('0'+i))
				collect(op.RequestTxn.Success, inner+"s")
				collect(op.RequestTxn.Failure, inner+"f")
			}
		}
	}
	collect(t.Success, "s")
	collect(t.Failure, "f")
	for _, d := range deletes {
		for _, p := range puts {
			unbounded := bytes.Equal(d.end, []byte{0})
			if d.covers(p.key) && (unbounded || p.list != d.list) {
				return true
			}
		}
	}
	return false
}

// keepsSomething tells whether any put asks to keep a key's value or lease.
func keepsSomething(branch []*pb.RequestOp) bool {
	return slices.ContainsFunc(branch, func(op *pb.RequestOp) bool {
		put, inner := op.GetRequestPut(), op.GetRequestTxn()
		return put.GetIgnoreValue() || put.GetIgnoreLease() || keepsSomething(inner.GetSuccess()) || keepsSomething(inner.GetFailure())
	})
}

// placed is a change of a txn and the operation list that it stands in.
type placed struct {
	list string
	interval
}
