// Snapshots of B in the hands of etcd's own tools, and of A itself.
//
// B is filled with random changes, compacted on the way, and saved by etcdctl. etcdutl reads the file, restores it, and
// A started from what it restored has the same history: every key at every revision, every hash, and every lease with its keys.
package interop

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

const (
	etcdutl       = "../../target/interop/etcdutl"
	snapshotSteps = 1500
	toolSecs      = 60
)

func TestEtcdTakesSnapshots(t *testing.T) {
	seed := fromEnv(t, "SEED", rand.Uint64()>>1)
	t.Logf("SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	for round, compacts := range []bool{false, true} {
		t.Run(fmt.Sprintf("compacts=%v", compacts), func(t *testing.T) {
			a, b := startPair(t)
			g := newGenerator(random, round%2 == 1, compacts)
			for step := range snapshotSteps {
				if request := g.request(); changesData(request) {
					g.learn(request, b.ask(request))
				}
				// Some of it settled, some of it in the log alone.
				if step == snapshotSteps/2 {
					if err := b.restart(); err != nil {
						t.Fatal(err)
					}
				}
			}
			checkSnapshot(t, a, b)
		})
	}
	t.Run("empty", func(t *testing.T) {
		a, b := startPair(t)
		checkSnapshot(t, a, b)
	})
	t.Run("large values", func(t *testing.T) {
		a, b := startPair(t)
		for i := range 40 {
			b.must(t, &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", i%7), Value: make([]byte, random.IntN(1<<20))})
		}
		checkSnapshot(t, a, b)
	})
}

// changesData says whether the request is one that a snapshot must show.
func changesData(request proto.Message) bool {
	switch request.(type) {
	case *pb.PutRequest, *pb.DeleteRangeRequest, *pb.TxnRequest, *pb.CompactionRequest, *pb.LeaseGrantRequest, *pb.LeaseRevokeRequest:
		return true
	}
	return false
}

// checkSnapshot saves B, and starts A from what etcdutl makes of it.
func checkSnapshot(t *testing.T, a, b *server) {
	t.Helper()
	file := filepath.Join(b.dir, "snapshot.db")
	run(t, etcdctl, "--endpoints", b.clientURL, "snapshot", "save", file)
	newest := b.hashKV(t, 0)

	var status struct {
		Revision  int64
		TotalKey  int64
		TotalSize int64
		Version   string
	}
	parse(t, run(t, etcdutl, "snapshot", "status", file, "-w", "json"), &status)
	alive := b.must(t, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true}).(*pb.RangeResponse).Count
	size, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if status.TotalKey != alive || status.Version != "3.7.0" || status.TotalSize+32 != size.Size() {
		t.Errorf("status of the file: %+v; %d keys, %d bytes", status, alive, size.Size())
	}

	// etcdutl writes to the file that it hashes.
	copied := filepath.Join(b.dir, "copy.db")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copied, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	var hashed struct{ Hash, HashRevision, CompactRevision int64 }
	parse(t, run(t, etcdutl, "hashkv", copied, "-w", "json"), &hashed)
	if hashed.Hash != int64(newest.Hash) || hashed.HashRevision != newest.HashRevision || hashed.CompactRevision != newest.CompactRevision {
		t.Errorf("etcdutl hashes %+v, the server %v", hashed, newest)
	}

	a.kill()
	if err := os.RemoveAll(a.dataDir()); err != nil {
		t.Fatal(err)
	}
	run(t, etcdutl, "snapshot", "restore", file, "--data-dir", a.dataDir(),
		"--initial-cluster", "default="+a.peerURL, "--initial-advertise-peer-urls", a.peerURL)
	if err := a.startOnce(); err != nil {
		t.Fatalf("%v\n%s", err, a.lastLog())
	}
	compareHistory(t, a, b)
	compareLeases(t, a, b)
}

// compareLeases compares which leases there are, and their keys. Those of A have all of their time again.
func compareLeases(t *testing.T, a, b *server) {
	t.Helper()
	for _, id := range leaseIDs {
		request := &pb.LeaseTimeToLiveRequest{ID: id, Keys: true}
		leases := [2]*pb.LeaseTimeToLiveResponse{a.must(t, request).(*pb.LeaseTimeToLiveResponse), b.must(t, request).(*pb.LeaseTimeToLiveResponse)}
		for _, lease := range leases {
			slices.SortFunc(lease.Keys, bytes.Compare)
			lease.Header, lease.TTL = nil, min(lease.TTL, 0)
		}
		if !proto.Equal(leases[0], leases[1]) {
			t.Errorf("lease %d: A %v, B %v", id, leases[0], leases[1])
		}
	}
}

// compareHistory compares every key at every revision, every hash, and every lease with its keys.
func compareHistory(t *testing.T, a, b *server) {
	t.Helper()
	first, last := compareKeys(t, a, b)
	for revision := first; revision <= last; revision++ {
		hashA, hashB := a.hashKV(t, revision), b.hashKV(t, revision)
		if hashA.Hash != hashB.Hash || hashA.CompactRevision != hashB.CompactRevision {
			t.Fatalf("hashes at revision %d: A %v, B %v", revision, hashA, hashB)
		}
	}
}

// compareKeys compares every key at every revision; answers the first and the last.
func compareKeys(t *testing.T, a, b *server) (first, last int64) {
	t.Helper()
	newest := b.hashKV(t, 0)
	first, last = max(newest.CompactRevision, 1), newest.HashRevision
	for revision := first; revision <= last; revision++ {
		request := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: revision}
		if text := difference(request, a.ask(request), b.ask(request)); text != "" {
			t.Fatalf("at revision %d: %s", revision, text)
		}
	}
	t.Logf("compared revisions %d to %d", first, last)
	return first, last
}

func (s *server) hashKV(t *testing.T, revision int64) *pb.HashKVResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callSecs*time.Second)
	defer cancel()
	hashed, err := pb.NewMaintenanceClient(s.conn).HashKV(ctx, &pb.HashKVRequest{Revision: revision})
	if err != nil {
		t.Fatalf("%s: HashKV(%d): %v", s.name, revision, err)
	}
	return hashed
}

// must asks what has to be answered.
func (s *server) must(t *testing.T, request proto.Message) proto.Message {
	t.Helper()
	a := s.ask(request)
	if a.err != nil {
		t.Fatalf("%s: %v", s.name, a.err)
	}
	return a.message
}

// run runs a tool that has to end well; answers what it printed.
func run(t *testing.T, tool string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), toolSecs*time.Second)
	defer cancel()
	process := exec.CommandContext(ctx, tool, args...)
	process.Stderr = os.Stderr
	out, err := process.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", tool, args, err, out)
	}
	return out
}

// refused runs a tool that has to refuse, in one line; answers that.
func refused(t *testing.T, tool string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), toolSecs*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, tool, args...).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || strings.Count(string(out), "\n") != 1 {
		t.Errorf("%s %v ends with %v and says: %s", tool, args, err, out)
	}
	return string(out)
}

func parse(t *testing.T, text []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}
