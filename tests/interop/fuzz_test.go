// The differential fuzzer: the same random requests to A and B in lockstep, and every field of every answer compared.
//
// A run is a few rounds. Each begins with empty stores, makes requests of its own kind, and kills and restarts both
// servers on the way. SEED=n replays a run; STEPS=n sets its length.
package interop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	stepsDefault    = 20_000
	roundSteps      = 5_000
	restartsInRound = 2
	historyReads    = 200
	callSecs        = 20
)

func TestServersAnswerAlike(t *testing.T) {
	seed, steps := fromEnv(t, "SEED", rand.Uint64()>>1), int(fromEnv(t, "STEPS", stepsDefault))
	fmt.Printf("differential fuzzer: SEED=%d STEPS=%d\n", seed, steps)
	random := rand.New(rand.NewPCG(seed, 0))
	outcomes := make(map[string]int)
	for first := 0; first < steps; first += roundSteps {
		round := first / roundSteps
		// Of four rounds three compact, two of them have few keys; the other puts and deletes one key in the same txn.
		g := newGenerator(random, round%2 == 1, round%4 != 2)
		t.Run(fmt.Sprintf("from%d", first), func(t *testing.T) {
			play(t, seed, first, min(first+roundSteps, steps), g, outcomes)
		})
		if t.Failed() {
			t.Fatalf("replay with SEED=%d STEPS=%d", seed, steps)
		}
	}
	t.Log("what was compared:\n" + listed(outcomes))
	for _, text := range outcomesExpected {
		met := slices.ContainsFunc(slices.Collect(maps.Keys(outcomes)), func(o string) bool { return strings.Contains(o, text) })
		if !met && steps >= stepsDefault {
			t.Errorf("no request ended with %q: the generator no longer makes any", text)
		}
	}
}

// outcomesExpected must all come up in a run of full length.
var outcomesExpected = []string{
	"Range: ok", "RangeStream: ok", "Put: ok", "DeleteRange: ok", "Txn: ok", "Compaction: ok",
	"key is not provided", "value is provided", "lease is provided", "key not found", "lease not found",
	"LeaseGrant: ok", "LeaseRevoke: ok", "LeaseTimeToLive: ok", "LeaseLeases: ok", "LeaseKeepAlive: ok",
	"lease already exists", "too large lease TTL", "LeaseRevoke: etcdserver: requested lease not found",
	"invalid sort option", "custom sort orders", "revision filters",
	"too many operations", "duplicate key", "request is too large", "received message larger",
	"Range: etcdserver: mvcc: required revision has been compacted", "Range: etcdserver: mvcc: required revision is a future revision",
	"Txn: etcdserver: mvcc: required revision has been compacted", "Txn: etcdserver: mvcc: required revision is a future revision",
	"Compaction: etcdserver: mvcc: required revision has been compacted", "Compaction: etcdserver: mvcc: required revision is a future revision",
	"watch: created", "watch: created in the past", "watch: created in the future", "watch: created at the floor", "watch: created below the floor",
	"watch: refused: " + textCompacted, "watch: refused: " + textEmpty, "watch: refused: " + textDuplicate,
	"watch: cancelled", "watch: cancelled while behind", "watch: cancelled after compacted", "watch: cancel of nobody",
	"watch: event with prev_kv", "watch: progress", "watch: progress not due", "watch: half-closed", "watch: resumed",
}

// listed prints how often each outcome was met, one a line.
func listed(outcomes map[string]int) string {
	var text strings.Builder
	for _, outcome := range slices.Sorted(maps.Keys(outcomes)) {
		fmt.Fprintf(&text, "%6d %s\n", outcomes[outcome], outcome)
	}
	return text.String()
}

func fromEnv(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	number, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return number
}

// play sends one round of requests.
func play(t *testing.T, seed uint64, first, end int, g *generator, outcomes map[string]int) {
	a, b := startPair(t)
	w := newWatches(t, seed, first, a, b, g, outcomes)
	var restarts []int
	for range restartsInRound {
		restarts = append(restarts, first+g.random.IntN(end-first))
	}
	for step := first; step < end; step++ {
		if slices.Contains(restarts, step) {
			w.sync()
			w.closeAll()
			inBoth(t, a, b, (*server).restart)
			w.restarted()
			readHistory(t, seed, step, a, b, w)
		}
		w.act(step)
		request := g.request()
		if _, ok := request.(*pb.CompactionRequest); ok {
			w.syncForCompaction()
		}
		answered := askBoth(t, seed, step, a, b, request)
		g.learn(request, answered)
		outcomes[outcome(request, answered)]++
	}
	w.sync()
	readHistory(t, seed, end, a, b, w)
	w.closeAll()
	t.Logf("revision %d, compacted at %d", g.revision, g.compacted)
	inBoth(t, a, b, (*server).stop)
}

// readHistory compares all keys at revisions from the oldest to the newest, at a sample of them if they are many, and
// with what the watches say that they are.
func readHistory(t *testing.T, seed uint64, step int, a, b *server, w *watches) {
	t.Helper()
	newest, oldest := w.store.revision, max(w.store.compacted, 1)
	stride := max(1, (newest-oldest)/historyReads)
	for revision := newest; revision >= oldest; revision -= stride {
		answered := askBoth(t, seed, step, a, b, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: revision})
		read, heard := answered.message.(*pb.RangeResponse).Kvs, w.journal.storeAt(revision)
		if !slices.EqualFunc(read, heard, func(a, b *mvccpb.KeyValue) bool { return proto.Equal(a, b) }) {
			t.Fatalf("SEED=%d, step %d: the keys at revision %d are not what was watched\nread: %v\nheard: %v", seed, step, revision, read, heard)
		}
	}
}

// learn keeps what the next requests should be near to.
func (g *generator) learn(request proto.Message, a answer) {
	if a.err != nil {
		return
	}
	if response, ok := a.message.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		g.revision = max(g.revision, response.GetHeader().GetRevision())
	}
	if compaction, ok := request.(*pb.CompactionRequest); ok {
		g.compacted = compaction.Revision
	}
}

// askBoth sends a request to both servers and returns A's answer, which B's must equal.
func askBoth(t *testing.T, seed uint64, step int, a, b *server, request proto.Message) answer {
	t.Helper()
	answered := make(chan answer, 1)
	go func() { answered <- a.ask(request) }()
	answerB := b.ask(request)
	answerA := <-answered
	why := difference(plain(request), answerA, answerB)
	for _, a := range []answer{answerA, answerB} {
		// A server that is gone answers nothing, and two that are gone answer alike.
		if code := status.Code(a.err); code == codes.Unavailable || code == codes.DeadlineExceeded {
			why = "no answer"
		}
	}
	if why != "" {
		t.Fatalf("SEED=%d, step %d: %s\nrequest: %s\nA: %s\nB: %s",
			seed, step, why, showMessage(plain(request)), answerA.show(), answerB.show())
	}
	return answerA
}

// plain is the message itself, without the mark that it is to be streamed.
func plain(request proto.Message) proto.Message {
	if stream, ok := request.(streamed); ok {
		return stream.RangeRequest
	}
	return request
}

// ask sends one request and waits for its answer.
func (s *server) ask(request proto.Message) answer {
	ctx, cancel := context.WithTimeout(context.Background(), callSecs*time.Second)
	defer cancel()
	kv := pb.NewKVClient(s.conn)
	switch request := request.(type) {
	case *pb.RangeRequest:
		return answerOf(kv.Range(ctx, request))
	case streamed:
		return answerOf(mergedStream(ctx, kv, request.RangeRequest))
	case *pb.PutRequest:
		return answerOf(kv.Put(ctx, request))
	case *pb.DeleteRangeRequest:
		return answerOf(kv.DeleteRange(ctx, request))
	case *pb.TxnRequest:
		return answerOf(kv.Txn(ctx, request))
	case *pb.CompactionRequest:
		return answerOf(kv.Compact(ctx, request))
	case *pb.LeaseGrantRequest:
		return answerOf(pb.NewLeaseClient(s.conn).LeaseGrant(ctx, request))
	case *pb.LeaseRevokeRequest:
		return answerOf(pb.NewLeaseClient(s.conn).LeaseRevoke(ctx, request))
	case *pb.LeaseTimeToLiveRequest:
		return answerOf(pb.NewLeaseClient(s.conn).LeaseTimeToLive(ctx, request))
	case *pb.LeaseLeasesRequest:
		return answerOf(pb.NewLeaseClient(s.conn).LeaseLeases(ctx, request))
	case *pb.LeaseKeepAliveRequest:
		return answerOf(keptAlive(ctx, pb.NewLeaseClient(s.conn), request))
	}
	panic(fmt.Sprintf("no call takes a %T", request))
}

func answerOf[M proto.Message](message M, err error) answer {
	if err != nil {
		return answer{err: err}
	}
	return answer{message: message}
}

// keptAlive sends one request on a stream of its own, which must then end in good order.
func keptAlive(ctx context.Context, leases pb.LeaseClient, request *pb.LeaseKeepAliveRequest) (*pb.LeaseKeepAliveResponse, error) {
	stream, err := leases.LeaseKeepAlive(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(request); err != nil {
		return nil, err
	}
	answer, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	if next, err := stream.Recv(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("the stream goes on with %v, %v", next, err)
	}
	return answer, nil
}

// mergedStream reads a streamed range and joins its parts: all but the last may hold keys only.
func mergedStream(ctx context.Context, kv pb.KVClient, request *pb.RangeRequest) (*pb.RangeResponse, error) {
	stream, err := kv.RangeStream(ctx, request)
	if err != nil {
		return nil, err
	}
	merged := new(pb.RangeResponse)
	for parts := 0; ; parts++ {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if merged.Header == nil {
				return nil, fmt.Errorf("the stream ended after %d parts without a header", parts)
			}
			return merged, nil
		}
		if err != nil {
			return nil, err
		}
		if merged.Header != nil {
			return nil, errors.New("a part follows the one with the header")
		}
		if r := part.RangeResponse; r.GetHeader() == nil && (r.GetMore() || r.GetCount() != 0 || len(r.GetKvs()) == 0) {
			return nil, fmt.Errorf("part %d is not the last but has more than keys, or none: %v", parts, r)
		}
		proto.Merge(merged, part.GetRangeResponse())
	}
}

// outcome names the kind of a request and how it ended, to show what a run has covered.
func outcome(request proto.Message, a answer) string {
	kind := strings.TrimSuffix(string(plain(request).ProtoReflect().Descriptor().Name()), "Request")
	if _, ok := request.(streamed); ok {
		kind = "RangeStream"
	}
	if a.err != nil {
		return fmt.Sprintf("%s: %s", kind, status.Convert(a.err).Message())
	}
	return kind + ": ok"
}

// A thousand keys and values of many sizes: streams of many parts, limits about the sizes of parts, and long sorts.
func TestLongRangesAnswerAlike(t *testing.T) {
	const keys = 1000
	a, b := startPair(t)
	step := 0
	ask := func(request proto.Message) {
		t.Helper()
		askBoth(t, 0, step, a, b, request)
		step++
	}
	for i := range keys {
		size := i % 7
		if i%50 == 0 {
			size = 300_000
		}
		ask(&pb.PutRequest{Key: fmt.Appendf(nil, "long/%04d", i*7%keys), Value: bytes.Repeat([]byte{byte('a' + i%3)}, size)})
	}
	all := &pb.RangeRequest{Key: []byte("long/"), RangeEnd: []byte("long0")}
	for _, limit := range []int64{-1, 0, 1, 9, 10, 11, 25, keys - 1, keys, keys + 1} {
		for _, revision := range []int64{0, 500, keys} {
			for _, keysOnly := range []bool{false, true} {
				request := proto.Clone(all).(*pb.RangeRequest)
				request.Limit, request.Revision, request.KeysOnly = limit, revision, keysOnly
				ask(request)
				ask(streamed{request})
				for target := range pb.RangeRequest_SortTarget_name {
					sorted := proto.Clone(request).(*pb.RangeRequest)
					sorted.SortTarget, sorted.SortOrder, sorted.KeysOnly = pb.RangeRequest_SortTarget(target), pb.RangeRequest_DESCEND, true
					ask(sorted)
				}
			}
		}
	}
	ask(streamed{&pb.RangeRequest{Key: []byte("long/"), RangeEnd: []byte("long0"), CountOnly: true, Limit: 5}})
	ask(&pb.DeleteRangeRequest{Key: []byte("long/0100"), RangeEnd: []byte("long/0900"), PrevKv: true})
	ask(&pb.CompactionRequest{Revision: keys, Physical: true})
	ask(streamed{all})
	t.Logf("compared %d requests", step)
}
