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
	"slices"
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
		restored := filepath.Join(a.dataDir(), "member", "snap", "db")
		sameStatus(t, b.program, restored)
		// What etcdutl makes is imported like any other directory.
		other := filepath.Join(b.dir, "other")
		run(t, b.program, "import", a.dataDir(), "--data-dir", other)
		if theirs, own := run(t, b.program, "check", "--data-dir", other), run(t, b.program, "check", "--data-dir", b.dataDir()); string(theirs) != string(own) {
			t.Errorf("imported: %s, restored: %s", theirs, own)
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

// TestImportFromOddPlaces has what can be in the way of an import and is not.
func TestImportFromOddPlaces(t *testing.T) {
	t.Run("log elsewhere", func(t *testing.T) {
		a, b := newServer(t, "A", programA(), "--wal-dir", filepath.Join(t.TempDir(), "log")), newServer(t, "B", programB())
		b.flags = append(b.flags, "--wal-dir", filepath.Join(b.dir, "log"))
		inBoth(t, a, b, (*server).start)
		a.must(t, &pb.PutRequest{Key: []byte("k")})
		a.kill()
		b.kill()
		a.moveTo(t, b)
		// Here it goes on in the etcd's folder, beside the etcd's files.
		b.flags = slices.Clone(a.flags)
		must(t, b.startOnce())
		if b.must(t, &pb.RangeRequest{Key: []byte("k")}).(*pb.RangeResponse).Count != 1 {
			t.Error("what was put is gone")
		}
		must(t, b.restart())
	})
	t.Run("unreadable snapshots of members", func(t *testing.T) {
		a, b := startPair(t)
		a.must(t, &pb.PutRequest{Key: []byte("k")})
		b.kill()
		must(t, a.stop())
		a.moveTo(t, b)
		for _, name := range []string{"0000000000000001-0000000000000002.snap", "db.tmp.123", "0000000000000009.snap.db"} {
			must(t, os.WriteFile(filepath.Join(b.dataDir(), "member", "snap", name), []byte("?"), 0o600))
		}
		must(t, b.startOnce())
	})
}

// TestImportRefusesWithWhatToDo has directories that cannot be taken over.
func TestImportRefusesWithWhatToDo(t *testing.T) {
	refuses := func(t *testing.T, b *server, folder, why string) {
		t.Helper()
		other := filepath.Join(b.dir, "other")
		if out := refused(t, b.program, "import", folder, "--data-dir", other); !strings.Contains(out, why) {
			t.Errorf("it says: %s", out)
		}
		if _, err := os.Stat(filepath.Join(other, "metastore")); err == nil {
			t.Error("there is a store all the same")
		}
	}
	for name, flags := range map[string][]string{"member in the database": nil, "member in the log": uncommitted} {
		t.Run(name, func(t *testing.T) {
			a, b := newServer(t, "A", programA(), flags...), newServer(t, "B", programB())
			must(t, a.start())
			run(t, etcdctl, "--endpoints", a.clientURL, "member", "add", "other", "--peer-urls", "http://127.0.0.1:1")
			a.kill()
			refuses(t, b, a.dataDir(), "one of 2 members")
		})
	}
	t.Run("damaged log", func(t *testing.T) {
		a, b := newServer(t, "A", programA(), uncommitted...), newServer(t, "B", programB())
		must(t, a.start())
		for range 100 {
			a.must(t, &pb.PutRequest{Key: []byte("k"), Value: make([]byte, 1000)})
		}
		a.kill()
		logs, err := filepath.Glob(filepath.Join(a.dataDir(), "member", "wal", "*.wal"))
		must(t, err)
		sound, err := os.ReadFile(logs[0])
		must(t, err)
		for range 10 {
			bytes := slices.Clone(sound)
			bytes[20_000+rand.IntN(50_000)] ^= 1
			must(t, os.WriteFile(logs[0], bytes, 0o600))
			refuses(t, b, a.dataDir(), ".wal, byte ")
		}
		must(t, os.WriteFile(logs[0], sound, 0o600))
		database := filepath.Join(a.dataDir(), "member", "snap", "db")
		must(t, os.WriteFile(database, []byte("?"), 0o600))
		refuses(t, b, a.dataDir(), "not a bbolt file")
		must(t, os.Remove(database))
		refuses(t, b, a.dataDir(), "No such file")
	})
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
