// The way in and out: B made of A's data, and A of B's.
//
// A is filled with random changes and compacted on the way. B is restored from its snapshot, or started on its data
// directory after it has stopped, and then has the same history: every key at every revision, and every hash.
package interop

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// fill makes random changes, at least one of them a compaction if it compacts.
func (s *server) fill(t *testing.T, random *rand.Rand, compacts bool) {
	t.Helper()
	g := newGenerator(random, random.IntN(2) == 0, compacts)
	for range snapshotSteps {
		if request := g.request(); changesData(request) {
			g.learn(request, s.ask(request))
		}
	}
}

// moveTo makes the other a server on a copy of this one's data directory and at the same addresses. This one has ended.
func (s *server) moveTo(t *testing.T, other *server) {
	t.Helper()
	if err := os.RemoveAll(other.dataDir()); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(other.dataDir(), os.DirFS(s.dataDir())); err != nil {
		t.Fatal(err)
	}
}

// restoreFrom puts what etcdutl makes of a snapshot in the place of what A has.
func (s *server) restoreFrom(t *testing.T, file string) {
	t.Helper()
	s.kill()
	if err := os.RemoveAll(s.dataDir()); err != nil {
		t.Fatal(err)
	}
	run(t, etcdutl, "snapshot", "restore", file, "--data-dir", s.dataDir(),
		"--initial-cluster", "default="+s.peerURL, "--initial-advertise-peer-urls", s.peerURL)
}

func TestImportOfAStoppedEtcd(t *testing.T) {
	seed := fromEnv(t, "SEED", rand.Uint64()>>1)
	t.Logf("SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 2))
	for _, compacts := range []bool{false, true} {
		a, b := startPair(t)
		a.fill(t, random, compacts)
		ids := a.status(t).Header

		// While it runs it is left alone.
		out := refused(t, b.program, "import", a.dataDir(), "--data-dir", filepath.Join(b.dir, "other"))
		if !strings.Contains(out, "stop that first") {
			t.Errorf("of a running etcd it says: %s", out)
		}
		if err := a.stop(); err != nil {
			t.Fatal(err)
		}
		b.kill()
		a.moveTo(t, b)
		before := files(t, filepath.Join(b.dataDir(), "member"))
		if err := b.startOnce(); err != nil {
			t.Fatalf("%v\n%s", err, b.lastLog())
		}
		if got := b.status(t).Header; got.ClusterId != ids.ClusterId || got.MemberId != ids.MemberId {
			t.Errorf("ids of the etcd: %v, after the import: %v", ids, got)
		}
		if err := a.startOnce(); err != nil {
			t.Fatal(err)
		}
		compareHistory(t, a, b)
		compareLeases(t, a, b)

		// It goes on, is not imported again, and the way back is open.
		b.must(t, &pb.PutRequest{Key: []byte("after"), Value: []byte("import")})
		if err := b.restart(); err != nil {
			t.Fatalf("%v\n%s", err, b.lastLog())
		}
		if b.must(t, &pb.RangeRequest{Key: []byte("after")}).(*pb.RangeResponse).Count != 1 {
			t.Error("what was put after the import is gone")
		}
		for name, content := range files(t, filepath.Join(b.dataDir(), "member")) {
			if before[name] != content {
				t.Errorf("%s is not as it was", name)
			}
		}
		run(t, b.program, "snapshot", "save", filepath.Join(b.dir, "online.db"), "--endpoints", b.clientURL)
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		run(t, b.program, "check", "--data-dir", b.dataDir())

		// And out again.
		exported := filepath.Join(b.dir, "exported.db")
		run(t, b.program, "export", exported, "--data-dir", b.dataDir())
		sameStatus(t, b.program, exported)
		sameStatus(t, b.program, filepath.Join(b.dir, "online.db"))
		a.restoreFrom(t, exported)
		if err := errors.Join(a.startOnce(), b.startOnce()); err != nil {
			t.Fatal(err)
		}
		compareHistory(t, a, b)
		compareLeases(t, a, b)
	}
}

func TestRestoreOfAnEtcdsSnapshot(t *testing.T) {
	seed := fromEnv(t, "SEED", rand.Uint64()>>1)
	t.Logf("SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 3))
	for _, bump := range []bool{false, true} {
		a, b := startPair(t)
		a.fill(t, random, true)
		file := filepath.Join(a.dir, "snapshot.db")
		run(t, etcdctl, "--endpoints", a.clientURL, "snapshot", "save", file)
		sameStatus(t, b.program, file)
		var flags []string
		if bump {
			flags = []string{"--bump-revision", "1000", "--mark-compacted"}
		}
		for _, s := range []*server{a, b} {
			s.kill()
			if err := os.RemoveAll(s.dataDir()); err != nil {
				t.Fatal(err)
			}
			tool := etcdutl
			if s == b {
				tool = b.program
			}
			run(t, tool, append([]string{"snapshot", "restore", file, "--data-dir", s.dataDir(),
				"--initial-cluster", "default=" + s.peerURL, "--initial-advertise-peer-urls", s.peerURL}, flags...)...)
		}
		out := refused(t, b.program, "snapshot", "restore", file, "--data-dir", b.dataDir())
		if !strings.Contains(out, "is not empty") {
			t.Errorf("of a full directory it says: %s", out)
		}
		if err := errors.Join(a.startOnce(), b.startOnce()); err != nil {
			t.Fatal(err)
		}
		if bump {
			// etcd keeps a record of no key at the revision that it was bumped to, and hashes it.
			compareKeys(t, a, b)
		} else {
			compareHistory(t, a, b)
		}
		compareLeases(t, a, b)
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		run(t, b.program, "check", "--data-dir", b.dataDir())
	}
}

func TestDamagedFilesAreRefused(t *testing.T) {
	a, b := startPair(t)
	a.fill(t, rand.New(rand.NewPCG(1, 4)), true)
	file := filepath.Join(a.dir, "snapshot.db")
	run(t, etcdctl, "--endpoints", a.clientURL, "snapshot", "save", file)
	sound, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 5))
	other := filepath.Join(b.dir, "other")
	damaged := filepath.Join(b.dir, "damaged.db")
	for i := range 40 {
		bytes := append([]byte(nil), sound...)
		if i%4 == 0 {
			bytes = bytes[:random.IntN(len(bytes))]
		} else {
			bytes[random.IntN(len(bytes))] ^= 1 << random.IntN(8)
		}
		if err := os.WriteFile(damaged, bytes, 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, b.program, "import", damaged, "--data-dir", other)
		if _, err := os.Stat(other); err == nil {
			t.Fatal("a damaged file left a directory")
		}
	}
}

// sameStatus compares what both tools say of a file.
func sameStatus(t *testing.T, ours, file string) {
	t.Helper()
	for _, format := range []string{"simple", "json", "fields", "table"} {
		a := run(t, etcdutl, "snapshot", "status", file, "-w", format)
		b := run(t, ours, "snapshot", "status", file, "-w", format)
		if string(a) != string(b) {
			t.Errorf("status of %s: etcdutl says %s, ours %s", file, a, b)
		}
	}
}

func (s *server) status(t *testing.T) *pb.StatusResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callSecs*time.Second)
	defer cancel()
	status, err := pb.NewMaintenanceClient(s.conn).Status(ctx, &pb.StatusRequest{})
	if err != nil {
		t.Fatalf("%s: Status: %v", s.name, err)
	}
	return status
}

// files has the content of every file below a folder.
func files(t *testing.T, folder string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.Walk(folder, func(path string, entry os.FileInfo, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		found[path] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
