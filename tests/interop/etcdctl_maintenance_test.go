// etcdctl's alarms, members, leader and versions against A and B: equal words, exit codes and JSON. And the alarm of
// the quota, raised, listed and disarmed as etcd's own test of it does.
package interop

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// maintenanceSession is played from an empty store, in order. SELF stands for the member's id, OWN for its peer URL;
// "raise" is no command of etcdctl, and raises the alarm of that name.
var maintenanceSession = []command{
	{args: "alarm list"},
	{args: "alarm list -w json"},
	{args: "alarm disarm"},
	{args: "put k v"},
	{args: "raise NOSPACE"},
	{args: "alarm list"},
	{args: "alarm list -w json"},
	{args: "alarm list -w fields"},
	{args: "put k v"},
	{args: "txn", stdin: "\nput k v\n\n\n"},
	{args: "lease grant 100"},
	{args: "get k"},
	{args: "del k"},
	{args: "endpoint status"},
	{args: "endpoint status -w json"},
	{args: "endpoint status -w fields"},
	{args: "endpoint status -w table"},
	{args: "endpoint health"},
	{args: "endpoint health -w json"},
	{args: "compaction 2"},
	// One alarm at a time: etcd has no order among them.
	{args: "alarm disarm"},
	{args: "raise CORRUPT"},
	{args: "put k v"},
	{args: "del k"},
	{args: "compaction 3"},
	{args: "get k"},
	{args: "endpoint status"},
	{args: "alarm disarm"},
	{args: "alarm list"},
	{args: "alarm disarm -w json"},
	{args: "endpoint health"},
	{args: "put k v"},

	{args: "member list"},
	{args: "member list -w json"},
	{args: "member list -w fields"},
	{args: "member list -w table"},
	{args: "member list --consistency=s"},
	{args: "member add other --peer-urls=OWN"},
	{args: "member add other --peer-urls=OWN --learner"},
	{args: "member add other --peer-urls=http://10.0.0.1"},
	{args: "member add other"},
	{args: "member add"},
	{args: "member remove SELF"},
	{args: "member remove 1234"},
	{args: "member remove nobody"},
	{args: "member promote SELF"},
	{args: "member promote 1234"},
	{args: "member update 1234 --peer-urls=http://10.0.0.1:2380"},
	{args: "member update SELF --peer-urls=http://10.0.0.1:2380,http://10.0.0.2:2380"},
	{args: "member list"},
	{args: "member update SELF --peer-urls=http://10.0.0.1:2380 -w json"},
	{args: "member list -w json"},
	{args: "member add other --peer-urls=http://10.0.0.1:2380"},
	{args: "member update SELF --peer-urls=OWN"},
	{args: "member list -w json"},
	{args: "member update SELF"},

	{args: "move-leader SELF"},
	{args: "move-leader 1234"},
	{args: "move-leader"},
	{args: "downgrade validate 3.6"},
	{args: "downgrade validate 3.6.0"},
	{args: "downgrade validate 3.5"},
	{args: "downgrade validate 3.7"},
	{args: "downgrade validate latest"},
	{args: "downgrade validate"},
	{args: "downgrade enable 3.5"},
	{args: "downgrade enable latest"},
	{args: "downgrade cancel"},
	{args: "endpoint status"},
	{args: "put k v"},
}

func TestEtcdctlMaintainsAlike(t *testing.T) {
	a, b := startPair(t)
	saySame(t, a, b, maintenanceSession, func(s *server, c command) string { return s.maintain(t, c) })
}

// maintain runs one command of the session, and hides the member's id as a decimal number too. etcd's words for an
// alarm have one blank or two, as its build wants it; columns of a table are as wide as what is hidden.
func (s *server) maintain(t *testing.T, c command) string {
	t.Helper()
	if kind, ok := strings.CutPrefix(c.args, "raise "); ok {
		s.raise(t, s.memberID, pb.AlarmType(pb.AlarmType_value[kind]))
		return ""
	}
	c.args = strings.NewReplacer("SELF", fmt.Sprintf("%x", s.memberID), "OWN", s.peerURL).Replace(c.args)
	said := strings.ReplaceAll(s.etcdctl(t, c), fmt.Sprint(s.memberID), "MEMBER")
	for _, m := range []struct{ pattern, with string }{
		{`(memberID:\w+) +(alarm:)`, `$1 $2`},
		{`in cluster +[0-9a-f]+`, `in cluster CLUSTER`},
		{`─+`, `─`},
		{` {2,}`, ` `},
		{`│ \d+ │ \d+ │ \d+ │`, `│ TERM │ INDEX │ INDEX │`},
	} {
		said = regexp.MustCompile(m.pattern).ReplaceAllString(said, m.with)
	}
	return said
}

func (s *server) raise(t *testing.T, member uint64, kind pb.AlarmType) {
	t.Helper()
	request := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: member, Alarm: kind}
	if _, err := pb.NewMaintenanceClient(s.conn).Alarm(t.Context(), request); err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
}

const (
	smallPutBytes = 64
	// etcd's file grows when it commits, every 100 ms, and is held against the quota only then.
	putsMax = 100_000
)

// As etcd's own test of it: a quota of 13 pages takes a small put on a fresh server. Then come puts of a page each, all
// of one key, until one is refused. The alarm is there. What makes room is compaction, and for etcd defragmentation.
func TestTheAlarmOfTheQuotaIsRaisedAndDisarmed(t *testing.T) {
	page := os.Getpagesize()
	a, b := startPair(t, fmt.Sprintf("--quota-backend-bytes=%d", 13*page))
	for _, s := range []*server{a, b} {
		last := s.fillToTheQuota(t, page)
		listed := s.etcdctl(t, command{args: "alarm list"})
		if want := fmt.Sprintf("memberID:%d  alarm:NOSPACE", s.memberID); !strings.Contains(s.etcdctlSays(t, command{args: "alarm list"}), want) {
			t.Errorf("%s: %s is not in %s", s.name, want, listed)
		}
		if code := status.Code(s.putOf(smallPutBytes)); code != codes.ResourceExhausted {
			t.Errorf("%s: a small put, with the alarm there: %v", s.name, code)
		}
		s.makeRoom(t, last)
		s.etcdctl(t, command{args: "alarm disarm"})
		if err := s.putOf(smallPutBytes); err != nil {
			t.Errorf("%s: after the alarm was disarmed: %v", s.name, err)
		}
	}
}

// Of ours, nobody need disarm the alarm; and there is no defragmentation to wait for.
func TestOurAlarmOfTheQuotaClearsItself(t *testing.T) {
	page := os.Getpagesize()
	s := startB(t, fmt.Sprintf("--quota-backend-bytes=%d", 13*page))
	if !s.ours {
		t.Skip("B is not ours")
	}
	last := s.fillToTheQuota(t, page)
	// Not a physical one: nothing waits until the rows are gone.
	if _, err := pb.NewKVClient(s.conn).Compact(t.Context(), &pb.CompactionRequest{Revision: last}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), readySecs*time.Second)
	defer cancel()
	for {
		list, err := pb.NewMaintenanceClient(s.conn).Alarm(ctx, &pb.AlarmRequest{})
		if err != nil {
			t.Fatalf("the alarm is still there: %v", err)
		}
		if len(list.Alarms) == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := s.putOf(page); err != nil {
		t.Error(err)
	}
}

// fillToTheQuota puts a page at a time until that is refused, and returns the revision of the last put that was not.
func (s *server) fillToTheQuota(t *testing.T, page int) (last int64) {
	t.Helper()
	if err := s.putOf(smallPutBytes); err != nil {
		t.Fatalf("%s: a small put on a fresh server: %v", s.name, err)
	}
	for puts := 0; ; puts++ {
		err := s.putOf(page)
		if err != nil {
			const want = "etcdserver: mvcc: database space exceeded"
			if status.Code(err) != codes.ResourceExhausted || status.Convert(err).Message() != want {
				t.Fatalf("%s: %v", s.name, err)
			}
			t.Logf("%s took %d puts of %d bytes", s.name, puts, page)
			break
		}
		if puts == putsMax {
			t.Fatalf("%s: no quota stops %d puts of %d bytes", s.name, puts, page)
		}
	}
	read, err := pb.NewKVClient(s.conn).Range(t.Context(), &pb.RangeRequest{Key: []byte("k")})
	if err != nil {
		t.Fatal(err)
	}
	return read.Header.Revision
}

func (s *server) putOf(bytes int) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandsSecs*time.Second)
	defer cancel()
	_, err := pb.NewKVClient(s.conn).Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: []byte(strings.Repeat("x", bytes))})
	return err
}

func (s *server) makeRoom(t *testing.T, revision int64) {
	t.Helper()
	if _, err := pb.NewKVClient(s.conn).Compact(t.Context(), &pb.CompactionRequest{Revision: revision, Physical: true}); err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	_, err := pb.NewMaintenanceClient(s.conn).Defragment(t.Context(), &pb.DefragmentRequest{})
	if err != nil && !(s.ours && status.Code(err) == codes.Unimplemented) {
		t.Fatalf("%s: %v", s.name, err)
	}
}
