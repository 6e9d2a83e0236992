// Large watch answers: in fragments for whoever asks for them, whole for the others.
package interop

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

const (
	// fragmentBytesMax is etcd's limit of requests, as it is by default, and half a megabyte.
	fragmentBytesMax = 1_572_864 + 524_288
	fragmentTries    = 5
)

func TestLargeWatchAnswersAlike(t *testing.T) {
	a, b := startPair(t)
	const puts, keys = 12, 6
	for i := range puts {
		askBoth(t, 0, i, a, b, &pb.PutRequest{Key: fmt.Appendf(nil, "large/%d", i%keys), Value: bytes.Repeat([]byte{byte('a' + i)}, 500_000+i)})
	}
	// One revision alone, with what was there before, is too large for one answer.
	askBoth(t, 0, puts, a, b, &pb.DeleteRangeRequest{Key: []byte("large/"), RangeEnd: []byte("large0")})
	for _, fragment := range []bool{false, true} {
		var joined [2]*pb.WatchResponse
		for i, s := range []*server{a, b} {
			create := &pb.WatchCreateRequest{Key: []byte("large/"), RangeEnd: []byte("large0"), StartRevision: 1, PrevKv: true, Fragment: fragment}
			var err error
			// etcd sends an answer whole that was ready before the created one was sent; that is rare, so it may try again.
			for range fragmentTries {
				if joined[i], err = readLarge(s, create, puts+keys); err == nil {
					break
				}
			}
			if err != nil {
				t.Fatalf("%s, with fragments: %t: %v", s.name, fragment, err)
			}
		}
		if !proto.Equal(joined[0], joined[1]) {
			t.Errorf("with fragments: %t: the events differ\nA: %s\nB: %s", fragment, showMessage(joined[0]), showMessage(joined[1]))
		}
	}
}

// readLarge reads so many events of a watch and joins them.
func readLarge(s *server, create *pb.WatchCreateRequest, events int) (*pb.WatchResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callSecs*time.Second)
	defer cancel()
	stream, err := pb.NewWatchClient(s.conn).Watch(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(createRequest(create)); err != nil {
		return nil, err
	}
	joined := new(pb.WatchResponse)
	fragments, last := 0, int64(0)
	for n := 0; ; n++ {
		r, err := stream.Recv()
		size := proto.Size(r)
		switch {
		case err != nil:
			return nil, err
		case r.Created != (n == 0):
			return nil, fmt.Errorf("answer %d: created is %t", n, r.Created)
		case create.Fragment && size >= fragmentBytesMax && len(r.Events) > 1:
			return nil, fmt.Errorf("answer %d: %d events in %d bytes", n, len(r.Events), size)
		case r.Fragment && !create.Fragment:
			return nil, fmt.Errorf("answer %d: a fragment", n)
		case r.Fragment && len(r.Events) == 0:
			return nil, fmt.Errorf("answer %d: an empty fragment", n)
		case !create.Fragment && len(r.Events) > 0 && r.Events[0].Kv.ModRevision == last:
			return nil, fmt.Errorf("answer %d: revision %d is split", n, last)
		}
		if len(r.Events) > 0 {
			last = r.Events[len(r.Events)-1].Kv.ModRevision
		}
		joined.Events = append(joined.Events, r.Events...)
		if r.Fragment {
			fragments++
		}
		if len(joined.Events) < events {
			continue
		}
		if r.Fragment {
			return nil, fmt.Errorf("answer %d is the last, but a fragment", n)
		}
		if create.Fragment && fragments == 0 {
			return nil, fmt.Errorf("no fragments in %d answers", n+1)
		}
		return joined, nil
	}
}
