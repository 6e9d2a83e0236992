// When two answers are equal, and how a difference is shown.
package interop

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// answer is what one server said: a message or an error.
type answer struct {
	message proto.Message
	err     error
}

// stableSortMax is the greatest number of keys that etcd sorts stably; above it ties may stand in any order.
const stableSortMax = 12

// leaseAgeMax is longer than any run, in seconds.
const leaseAgeMax = 9000

// difference tells how B's answer to a request differs from A's; empty if they are equal.
func difference(request proto.Message, a, b answer) string {
	if (a.err != nil) != (b.err != nil) {
		return "one is an error"
	}
	if a.err != nil {
		return errorDifference(status.Convert(a.err), status.Convert(b.err))
	}
	one, other := proto.Clone(a.message), proto.Clone(b.message)
	for _, message := range []proto.Message{one, other} {
		hideIdentity(message)
		orderTies(request, message)
		hideTime(message)
	}
	if !proto.Equal(one, other) {
		return "they differ in a field"
	}
	return ""
}

// errorDifference compares etcd's own errors by code and text, those that gRPC makes by code only.
func errorDifference(a, b *status.Status) string {
	switch {
	case a.Code() != b.Code():
		return "error codes differ"
	case saidByEtcd(a) && a.Message() != b.Message():
		return "error texts differ"
	case len(a.Details()) != len(b.Details()):
		return "error details differ"
	}
	return ""
}

func saidByEtcd(s *status.Status) bool {
	return strings.HasPrefix(s.Message(), "etcdserver: ") || strings.HasPrefix(s.Message(), "RangeStream ") || s.Code() == codes.Unknown
}

// hideIdentity replaces what rightly differs between two servers, but still shows whether it was set.
func hideIdentity(message proto.Message) {
	walk(message.ProtoReflect(), func(m protoreflect.Message) {
		if header, ok := m.Interface().(*pb.ResponseHeader); ok {
			for _, id := range []*uint64{&header.ClusterId, &header.MemberId, &header.RaftTerm} {
				*id = min(*id, 1)
			}
		}
	})
}

// hideTime makes what is left of a lease all or nothing, since the servers were not asked at one moment, and brings what
// has no order, or the order of such moments, into one.
func hideTime(message proto.Message) {
	switch message := message.(type) {
	case *pb.LeaseTimeToLiveResponse:
		if message.TTL > 0 && message.TTL >= message.GrantedTTL-leaseAgeMax {
			message.TTL = message.GrantedTTL
		}
		slices.SortFunc(message.Keys, bytes.Compare)
	case *pb.LeaseLeasesResponse:
		slices.SortFunc(message.Leases, func(a, b *pb.LeaseStatus) int { return cmp.Compare(a.ID, b.ID) })
	}
}

// walk visits a message and all messages in it.
func walk(m protoreflect.Message, visit func(protoreflect.Message)) {
	visit(m)
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.Message() == nil:
		case field.IsList():
			for i := range value.List().Len() {
				walk(value.List().Get(i).Message(), visit)
			}
		default:
			walk(value.Message(), visit)
		}
		return true
	})
}

// orderTies brings keys that sort equal into key order, in every sorted range answer that etcd may have left unstable.
// Where a limit cuts through a tie, any of its keys may have been kept: then only how many are shown.
func orderTies(request, response proto.Message) {
	switch request := request.(type) {
	case *pb.RangeRequest:
		orderRangeTies(request, response.(*pb.RangeResponse))
	case *pb.TxnRequest:
		response := response.(*pb.TxnResponse)
		branch := request.Failure
		if response.Succeeded {
			branch = request.Success
		}
		for i := range min(len(branch), len(response.Responses)) {
			if inner := response.Responses[i].GetResponseRange(); inner != nil && branch[i].GetRequestRange() != nil {
				orderRangeTies(branch[i].GetRequestRange(), inner)
			}
			if inner := response.Responses[i].GetResponseTxn(); inner != nil && branch[i].GetRequestTxn() != nil {
				orderTies(branch[i].GetRequestTxn(), inner)
			}
		}
	}
}

func orderRangeTies(request *pb.RangeRequest, response *pb.RangeResponse) {
	if request.SortTarget == pb.RangeRequest_KEY || response.Count <= stableSortMax || request.CountOnly {
		return
	}
	if request.SortTarget == pb.RangeRequest_VALUE && request.KeysOnly {
		// The values are gone from the answer, so its ties cannot be told: compare the keys as one set.
		for _, kv := range response.Kvs {
			kv.Value = nil
		}
	}
	tied := func(a, b *mvccpb.KeyValue) bool {
		switch request.SortTarget {
		case pb.RangeRequest_VERSION:
			return a.Version == b.Version
		case pb.RangeRequest_CREATE:
			return a.CreateRevision == b.CreateRevision
		case pb.RangeRequest_MOD:
			return a.ModRevision == b.ModRevision
		default:
			return bytes.Equal(a.Value, b.Value)
		}
	}
	for start := 0; start < len(response.Kvs); {
		end := start + 1
		for end < len(response.Kvs) && tied(response.Kvs[start], response.Kvs[end]) {
			end++
		}
		group := response.Kvs[start:end]
		sort.Slice(group, func(i, j int) bool { return bytes.Compare(group[i].Key, group[j].Key) < 0 })
		if end == len(response.Kvs) && response.More {
			sample := &mvccpb.KeyValue{}
			switch request.SortTarget {
			case pb.RangeRequest_VERSION:
				sample.Version = group[0].Version
			case pb.RangeRequest_CREATE:
				sample.CreateRevision = group[0].CreateRevision
			case pb.RangeRequest_MOD:
				sample.ModRevision = group[0].ModRevision
			default:
				sample.Value = group[0].Value
			}
			for i := range group {
				group[i] = sample
			}
		}
		start = end
	}
}

// show prints an answer for a person to compare.
func (a answer) show() string {
	if a.err != nil {
		s := status.Convert(a.err)
		return fmt.Sprintf("error %s %q", s.Code(), s.Message())
	}
	return showMessage(a.message)
}

const shownBytesMax = 6000

func showMessage(message proto.Message) string {
	text := string(message.ProtoReflect().Descriptor().Name()) + " { " + prototext.MarshalOptions{}.Format(message) + " }"
	if len(text) > shownBytesMax {
		text = fmt.Sprintf("%s... and %d bytes more", text[:shownBytesMax], len(text)-shownBytesMax)
	}
	return text
}

// A change of any one field must be seen, except of the three that tell servers apart.
func TestComparisonSeesEveryField(t *testing.T) {
	kv := func(key string) *mvccpb.KeyValue {
		return &mvccpb.KeyValue{Key: []byte(key), Value: []byte("v"), CreateRevision: 2, ModRevision: 3, Version: 2, Lease: 7}
	}
	header := func() *pb.ResponseHeader {
		return &pb.ResponseHeader{ClusterId: 11, MemberId: 12, Revision: 13, RaftTerm: 14}
	}
	inner := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: 3}, Kvs: []*mvccpb.KeyValue{kv("a"), kv("b")}, More: true, Count: 5}
	answers := []proto.Message{
		&pb.RangeResponse{Header: header(), Kvs: []*mvccpb.KeyValue{kv("a"), kv("b")}, More: true, Count: 5},
		&pb.PutResponse{Header: header(), PrevKv: kv("a")},
		&pb.DeleteRangeResponse{Header: header(), Deleted: 2, PrevKvs: []*mvccpb.KeyValue{kv("a"), kv("b")}},
		&pb.CompactionResponse{Header: header()},
		&pb.TxnResponse{Header: header(), Succeeded: true, Responses: []*pb.ResponseOp{
			{Response: &pb.ResponseOp_ResponseRange{ResponseRange: inner}},
			{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: &pb.TxnResponse{Header: &pb.ResponseHeader{}, Succeeded: true}}},
		}},
	}
	for _, message := range answers {
		name := message.ProtoReflect().Descriptor().Name()
		if d := difference(&pb.PutRequest{}, answer{message: message}, answer{message: proto.Clone(message)}); d != "" {
			t.Errorf("%s differs from itself: %s", name, d)
		}
		for i := 0; ; i++ {
			changed := proto.Clone(message)
			field, ok := changeField(changed.ProtoReflect(), i)
			if !ok {
				break
			}
			seen := difference(&pb.PutRequest{}, answer{message: message}, answer{message: changed}) != ""
			hidden := field == "ResponseHeader.cluster_id" || field == "ResponseHeader.member_id" || field == "ResponseHeader.raft_term"
			if seen == hidden {
				t.Errorf("%s: change %d, of %s: seen is %t", name, i, field, seen)
			}
		}
	}
}

// changeField changes the nth scalar or drops the nth message of all that are set, and names it.
func changeField(message protoreflect.Message, n int) (name string, ok bool) {
	seen := 0
	walk(message, func(m protoreflect.Message) {
		m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
			if seen == n && !ok {
				name, ok = fmt.Sprintf("%s.%s", m.Descriptor().Name(), field.Name()), true
				switch {
				case field.IsList():
					value.List().Truncate(value.List().Len() - 1)
				case field.Message() != nil:
					m.Clear(field)
				case field.Kind() == protoreflect.BoolKind:
					m.Set(field, protoreflect.ValueOfBool(!value.Bool()))
				case field.Kind() == protoreflect.BytesKind:
					m.Set(field, protoreflect.ValueOfBytes(append([]byte{'x'}, value.Bytes()...)))
				case field.Kind() == protoreflect.Uint64Kind:
					m.Set(field, protoreflect.ValueOfUint64(value.Uint()+1))
				default:
					m.Set(field, protoreflect.ValueOfInt64(value.Int()+1))
				}
			}
			seen++
			return true
		})
	})
	return name, ok
}

func TestComparisonOfErrors(t *testing.T) {
	said := func(code codes.Code, text string) answer { return answer{err: status.Error(code, text)} }
	compacted := said(codes.OutOfRange, "etcdserver: mvcc: required revision has been compacted")
	for _, c := range []struct {
		a, b  answer
		equal bool
	}{
		{compacted, compacted, true},
		{compacted, said(codes.OutOfRange, "etcdserver: mvcc: required revision is a future revision"), false},
		{compacted, said(codes.Unknown, "etcdserver: mvcc: required revision has been compacted"), false},
		{compacted, answer{message: &pb.RangeResponse{}}, false},
		{said(codes.ResourceExhausted, "grpc: received message larger than max"), said(codes.ResourceExhausted, "too large"), true},
	} {
		if got := difference(&pb.RangeRequest{}, c.a, c.b) == ""; got != c.equal {
			t.Errorf("%s and %s: equal is %t", c.a.show(), c.b.show(), got)
		}
	}
}

// Above a dozen keys, keys that sort equal may stand in any order, and a limit may keep any of them; nothing else may differ.
func TestComparisonOfTies(t *testing.T) {
	sorted := func(more bool, keys string) answer {
		r := &pb.RangeResponse{Count: stableSortMax + 1, More: more}
		for _, key := range keys {
			// The version is the place in the alphabet, by threes.
			r.Kvs = append(r.Kvs, &mvccpb.KeyValue{Key: []byte(string(key)), Version: int64(key-'a') / 3, Value: []byte("v")})
		}
		return answer{message: r}
	}
	request := &pb.RangeRequest{SortTarget: pb.RangeRequest_VERSION, SortOrder: pb.RangeRequest_ASCEND}
	for _, c := range []struct {
		a, b  answer
		equal bool
	}{
		{sorted(false, "abcdefghijklm"), sorted(false, "cabdfeghijlkm"), true},
		{sorted(false, "abcdefghijklm"), sorted(false, "abdcefghijklm"), false},
		{sorted(true, "abcde"), sorted(true, "cbafe"), true},
		{sorted(true, "abcde"), sorted(true, "cbage"), false},
		{sorted(true, "abcde"), sorted(true, "abcdeg"), false},
	} {
		if got := difference(request, c.a, c.b) == ""; got != c.equal {
			t.Errorf("%s and %s: equal is %t", c.a.show(), c.b.show(), got)
		}
	}
	few := &pb.RangeResponse{Kvs: sorted(false, "abc").message.(*pb.RangeResponse).Kvs, Count: 3}
	other := &pb.RangeResponse{Kvs: sorted(false, "acb").message.(*pb.RangeResponse).Kvs, Count: 3}
	if difference(request, answer{message: few}, answer{message: other}) == "" {
		t.Error("up to a dozen keys the sort is stable, and its order must be equal")
	}
}
