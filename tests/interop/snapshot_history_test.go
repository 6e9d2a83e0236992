// Snapshots taken while everything happens, and each of them held against all that happened.
//
// Writers, compactions and `kill -9` go on while B is saved again and again. Of some of the files a server is made, of ours
// and of the real etcd: what it holds is all that had been answered when the snapshot began, and nothing that was only
// asked for when it had ended; and a watch over its history is as right as one of the server that was saved.
package interop

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

const (
	writesPerSnapshot = 300
	restoredSnapshots = 3
)

// saved is a snapshot, and the newest revisions that had been answered when it began and had been read when it had ended.
type saved struct {
	file          string
	before, after int64
}

func TestSnapshotsUnderLoadHoldHistory(t *testing.T) {
	seed := fromEnv(t, "SEED", rand.Uint64()>>1)
	fmt.Printf("history of snapshots: SEED=%d\n", seed)
	var flags []string
	if isOurs(programB()) {
		flags = []string{"--flush-size", "1MiB"}
	}
	h := newHappening(t, seed, startB(t, flags...))
	h.watchers = nil
	var saving sync.WaitGroup
	var snapshots []saved
	saving.Go(func() { snapshots = h.save(t.TempDir()) })
	h.play()
	saving.Wait()
	if len(snapshots) < restoredSnapshots {
		t.Fatalf("SEED=%d: only %d snapshots came to their end", seed, len(snapshots))
	}
	t.Logf("%d snapshots of %d changes at %d revisions, %d kills, %d compactions", len(snapshots), len(h.events), len(h.changes), kills, h.compactions)
	// The first, the last, and one between them.
	for i := range restoredSnapshots {
		s := snapshots[i*(len(snapshots)-1)/(restoredSnapshots-1)]
		a, b := newServer(t, "A", cmp.Or(os.Getenv("A"), "../../target/interop/etcd")), newServer(t, "B", programB())
		for _, server := range []*server{a, b} {
			server.restore(t, s.file)
			if err := h.checkRestored(server, s); err != nil {
				t.Errorf("SEED=%d: %s, restored from the snapshot of revisions %d to %d: %v", seed, server.name, s.before, s.after, err)
			}
			server.kill()
		}
	}
}

// save takes snapshots until all is over. One that a kill cuts short is no snapshot.
func (h *happening) save(folder string) []saved {
	var snapshots []saved
	for n := 1; ; n++ {
		h.awaitWrites(n * writesPerSnapshot)
		h.mu.Lock()
		before, over := h.newest, h.finished || h.aborted
		h.mu.Unlock()
		if over {
			return snapshots
		}
		file := filepath.Join(folder, fmt.Sprintf("%d.db", n))
		if err := h.saveTo(file); err != nil {
			_ = os.Remove(file)
			continue
		}
		h.mu.Lock()
		snapshots = append(snapshots, saved{file, before, h.newest})
		h.mu.Unlock()
	}
}

func (h *happening) saveTo(path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), toolSecs*time.Second)
	defer cancel()
	from, err := h.clients[0].Snapshot(ctx)
	if err != nil {
		return err
	}
	defer from.Close()
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := io.Copy(file, from); err != nil {
		return err
	}
	return file.Close()
}

// restore makes the server's directory of a snapshot with its own tool, and starts it.
func (s *server) restore(t *testing.T, file string) {
	t.Helper()
	tool := etcdutl
	if s.ours {
		tool = s.program
	}
	var err error
	if s.clientURL, s.peerURL, err = freeURLs(); err != nil {
		t.Fatal(err)
	}
	run(t, tool, "snapshot", "restore", file, "--data-dir", s.dataDir(),
		"--initial-cluster", "default="+s.peerURL, "--initial-advertise-peer-urls", s.peerURL)
	if err := s.startOnce(); err != nil {
		t.Fatalf("%v\n%s", err, s.lastLog())
	}
}

// checkRestored tells what is wrong with a server that was made of a snapshot.
func (h *happening) checkRestored(s *server, from saved) error {
	newest := s.hashKV(h.t, 0)
	last, first := newest.HashRevision, max(newest.CompactRevision, 1)
	// Of what was under way when the snapshot ended, the answer may have come later, four writers at most.
	if last < from.before || last > from.after+2*historyWriters {
		return fmt.Errorf("its newest revision is %d", last)
	}
	all := s.must(h.t, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}).(*pb.RangeResponse)
	for i, kv := range h.storeAt(last) {
		if i >= len(all.Kvs) || !proto.Equal(all.Kvs[i], kv) {
			return fmt.Errorf("key %q is not as it was at revision %d", kv.Key, last)
		}
	}
	if len(all.Kvs) != len(h.storeAt(last)) {
		return fmt.Errorf("%d keys of %d", len(all.Kvs), len(h.storeAt(last)))
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{s.clientURL}})
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), settleSecs*time.Second)
	defer cancel()
	request := &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: first, PrevKv: true}
	heard := &watched{start: first, known: last}
	at := first - 1
	for response := range client.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(first), clientv3.WithPrevKV(), clientv3.WithCreatedNotify()) {
		heard.answers = append(heard.answers, watchAnswer{WatchResponse: response, compacting: h.compacting})
		for _, event := range response.Events {
			at = event.Kv.ModRevision
		}
		if at >= last || response.Canceled {
			break
		}
	}
	if at != last {
		return fmt.Errorf("its history ends at %d instead of %d", at, last)
	}
	return h.check(request, heard)
}
