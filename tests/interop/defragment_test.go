// Defragmentation of B by etcdctl, while clients write, read and watch: nobody waits for it, nothing is lost or changed,
// and the file is smaller after.
package interop

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	defragmentKeys   = 5000
	defragmentRounds = 8
	// Keys whose number begins with 1.
	defragmentOnes = 1111
	defragmentSecs = 120
	// The least that each kind of client must get done meanwhile.
	doneMeanwhile = 10
)

func TestDefragmentWhileClientsGoOn(t *testing.T) {
	if !isOurs(programB()) {
		t.Skip("etcd stops the world meanwhile")
	}
	b := startB(t, "--flush-size=1MiB", "--log-segment-size=1MiB")
	ctx, cancel := context.WithTimeout(context.Background(), defragmentSecs*time.Second)
	defer cancel()
	client := b.client(t, strings.TrimPrefix(b.clientURL, "http://"))
	value := strings.Repeat("v", 1000)
	var newest int64
	for range defragmentRounds {
		for first := 0; first < defragmentKeys; first += 100 {
			var puts []clientv3.Op
			for key := first; key < first+100; key++ {
				puts = append(puts, clientv3.OpPut(fmt.Sprintf("key %d", key), value))
			}
			answer, err := client.Txn(ctx).Then(puts...).Commit()
			if err != nil {
				t.Fatal(err)
			}
			newest = answer.Header.Revision
		}
	}
	lease := b.must(t, &pb.LeaseGrantRequest{TTL: 1000}).(*pb.LeaseGrantResponse).ID
	newest = b.must(t, &pb.PutRequest{Key: []byte("leased"), Lease: lease}).(*pb.PutResponse).Header.Revision
	b.must(t, &pb.CompactionRequest{Revision: newest - 4, Physical: true})
	before, lengthBefore := b.file(t)
	sizeBefore := b.status(t).DbSize
	hashBefore := b.hashKV(t, newest)

	// What goes on: one client writes, one reads, one watches all that is written.
	var ended atomic.Bool
	var puts, gets, events atomic.Int64
	var clients sync.WaitGroup
	watch := client.Watch(ctx, "meanwhile", clientv3.WithRev(newest+1))
	last := make(chan int64, 1)
	clients.Go(func() {
		var revision int64
		for number := 0; !ended.Load(); number++ {
			answer, err := client.Put(ctx, "meanwhile", fmt.Sprint(number))
			if err != nil {
				t.Error(err)
				break
			}
			revision = answer.Header.Revision
			puts.Add(1)
		}
		last <- revision
	})
	clients.Go(func() {
		for !ended.Load() {
			answer, err := client.Get(ctx, "key 1", clientv3.WithPrefix(), clientv3.WithRev(newest))
			if err != nil || answer.Count != defragmentOnes {
				t.Errorf("a read: %v, %v", answer, err)
				break
			}
			gets.Add(1)
		}
	})
	clients.Go(func() {
		var until int64
		for seen, number := newest, 0; until == 0 || seen < until; {
			select {
			case until = <-last:
			case heard, ok := <-watch:
				if !ok || heard.Err() != nil {
					t.Errorf("the watch ended: %v", heard.Err())
					return
				}
				for _, event := range heard.Events {
					if got := string(event.Kv.Value); got != fmt.Sprint(number) || event.Kv.ModRevision <= seen {
						t.Errorf("event %d is %q at %d, behind %d", number, got, event.Kv.ModRevision, seen)
						return
					}
					seen = event.Kv.ModRevision
					number++
					events.Add(1)
				}
			}
		}
	})
	for puts.Load() == 0 || gets.Load() == 0 || events.Load() == 0 {
		if t.Failed() {
			t.FailNow()
		}
		time.Sleep(time.Millisecond)
	}
	putsBefore, getsBefore, eventsBefore := puts.Load(), gets.Load(), events.Load()
	begun := time.Now()
	said := b.etcdctlSays(t, command{args: fmt.Sprintf("defrag --command-timeout=%ds", defragmentSecs)})
	took := time.Since(begun)
	done := []int64{puts.Load() - putsBefore, gets.Load() - getsBefore, events.Load() - eventsBefore}
	ended.Store(true)
	clients.Wait()
	if !strings.HasPrefix(said, "exit code 0\nFinished defragmenting etcd member") {
		t.Errorf("etcdctl defrag: %s", said)
	}
	for kind, done := range done {
		if done < doneMeanwhile {
			t.Errorf("client %d got only %d done meanwhile", kind, done)
		}
	}
	after, lengthAfter := b.file(t)
	if after > before/2 || lengthAfter > lengthBefore/2 {
		t.Errorf("the file took %d bytes of %d before, and is %d bytes long after %d", after, before, lengthAfter, lengthBefore)
	}
	if status := b.status(t); status.DbSize > sizeBefore/2 || status.DbSizeInUse > status.DbSize {
		t.Errorf("dbSize is %d, of which %d in use, and was %d", status.DbSize, status.DbSizeInUse, sizeBefore)
	}
	check := func() {
		t.Helper()
		if hash := b.hashKV(t, newest); hash.Hash != hashBefore.Hash || hash.CompactRevision != hashBefore.CompactRevision {
			t.Errorf("the hash is %v, and was %v", hash, hashBefore)
		}
		left := b.must(t, &pb.LeaseTimeToLiveRequest{ID: lease, Keys: true}).(*pb.LeaseTimeToLiveResponse)
		if len(left.Keys) != 1 || string(left.Keys[0]) != "leased" || left.TTL <= 0 {
			t.Errorf("the lease is %v", left)
		}
	}
	check()
	if err := b.restart(); err != nil {
		t.Fatal(err)
	}
	check()
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d to %d bytes in %v; meanwhile %d puts, %d reads, %d events", before, after, took, done[0], done[1], done[2])
}

// file tells how many bytes the database takes on the disk, and how long it is.
func (s *server) file(t *testing.T) (taken, length int64) {
	t.Helper()
	info, err := os.Stat(filepath.Join(s.dataDir(), "metastore", "data.redb"))
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512, info.Size()
}

// The lines that etcd logs too: scripts wait for them.
func TestDefragmentIsLogged(t *testing.T) {
	a, b := startPair(t)
	for _, s := range []*server{a, b} {
		if said := s.etcdctlSays(t, command{args: "defrag"}); !strings.HasPrefix(said, "exit code 0\n") {
			t.Errorf("%s: %s", s.name, said)
		}
		s.kill()
		for _, line := range []string{`"msg":"starting defragment"`, `"msg":"finished defragment"`} {
			if !bytes.Contains(s.log.Bytes(), []byte(line)) {
				t.Errorf("%s did not log %s", s.name, line)
			}
		}
	}
}
