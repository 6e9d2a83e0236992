// etcdctl's leases, locks and elections against A and B: equal words, exit codes and JSON, but for the ids that a
// server picks and the time that is left.
package interop

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// leaseSession is played from an empty store, in order. LEASE1 stands for the first lease that was granted, and so on.
var leaseSession = []command{
	{args: "lease list"},
	{args: "lease grant 1000"},
	{args: "lease grant 500"},
	{args: "lease grant 2000 -w json"},
	{args: "lease grant 3000 -w fields"},
	{args: "lease grant 9000000000"},
	{args: "lease grant 9000000001"},
	{args: "lease grant many"},
	{args: "lease grant"},
	{args: "lease list"},
	{args: "lease list -w json"},
	{args: "lease list -w fields"},
	{args: "put a 1 --lease=LEASE1"},
	{args: "put b 2 --lease=LEASE1"},
	{args: "put c 3 --lease=LEASE2"},
	{args: "put d 4 --lease=LEASE2 --prev-kv"},
	{args: "put d 4 --lease=1234"},
	{args: "get a -w json"},
	{args: "get a -w fields"},
	{args: "lease timetolive LEASE1"},
	{args: "lease timetolive LEASE1 --keys"},
	{args: "lease timetolive LEASE1 --keys -w json"},
	{args: "lease timetolive LEASE1 --keys -w fields"},
	{args: "lease timetolive LEASE2 -w json"},
	{args: "lease timetolive LEASE3 --keys"},
	{args: "lease timetolive 1234"},
	{args: "lease timetolive 1234 --keys -w json"},
	{args: "lease timetolive"},
	{args: "lease timetolive xyz"},
	{args: "lease keep-alive --once LEASE1"},
	{args: "lease keep-alive --once LEASE1 -w json"},
	{args: "lease keep-alive --once LEASE1 -w fields"},
	{args: "lease keep-alive --once 1234"},
	{args: "lease keep-alive 1234"},
	{args: "lease keep-alive"},

	// Keys come and go.
	{args: "put a 1 --lease=LEASE2"},
	{args: "put c 3"},
	{args: "put d 5 --ignore-lease"},
	{args: "lease timetolive LEASE1 --keys"},
	{args: "lease timetolive LEASE2 --keys"},
	{args: "txn", stdin: "lease(\"a\") = \"LEASE2\"\nlease(\"c\") = \"0\"\n\nput e 6 --lease=LEASE1\nget a\n\nget a\n\n"},
	{args: "txn", stdin: "lease(\"a\") > \"LEASE2\"\n\nput e 7\n\nput e 8 --lease=1234\n\n"},
	{args: "lease timetolive LEASE1 --keys"},
	{args: "lease revoke LEASE1"},
	{args: "lease revoke LEASE1"},
	{args: "lease revoke 1234"},
	{args: "lease revoke"},
	{args: "lease revoke xyz"},
	{args: "lease timetolive LEASE1 --keys"},
	{args: "get a --from-key"},
	{args: "lease revoke LEASE2 -w json"},
	{args: "get  --prefix -w json"},
	{args: "get a --rev=9 -w json"},
	{args: "lease revoke LEASE3 -w fields"},
	{args: "lease list"},

	{args: "lock"},
	{args: "elect"},
	{args: "elect name"},
	{args: "elect name value -l"},
	{args: "lock name true"},
	{args: "lock name false"},
	{args: "lock name echo said under a lock"},
	{args: "lock name --ttl=100 printenv ETCD_LOCK_KEY ETCD_LOCK_REV"},
	{args: "lock name ./no-such-program"},
	{args: "get  --prefix -w json"},
}

func TestEtcdctlLeasesAlike(t *testing.T) {
	a, b := startPair(t)
	leases := map[*server]*leaseNames{a: {}, b: {}}
	saySame(t, a, b, leaseSession, func(s *server, c command) string {
		names := leases[s]
		return names.mask(s, s.etcdctlSays(t, names.insert(c)))
	})
	if n := len(*leases[a]); n < 5 {
		t.Errorf("only %d leases were seen", n)
	}
}

// leaseNames are a server's leases, in the order in which their ids were seen.
type leaseNames []int64

// insert puts ids in the place of names.
func (l *leaseNames) insert(c command) command {
	for i, id := range *l {
		name, hex := fmt.Sprint("LEASE", i+1), strconv.FormatInt(id, 16)
		c = command{args: strings.ReplaceAll(c.args, name, hex), stdin: strings.ReplaceAll(c.stdin, name, hex)}
	}
	return c
}

// leaseIDsSaid are the ways in which etcdctl writes an id that a server has picked: such have 13 digits at least.
var leaseIDsSaid = regexp.MustCompile(`\b[0-9a-f]{13,16}\b|"(?:ID|id|lease|Lease)" ?: ?"?[0-9]{13,}"?`)

var leaseMasks = []struct{ pattern, with string }{
	{`"(cluster_id|member_id|raft_term|ClusterID|MemberID|RaftTerm)" ?: ?\d+`, `"$1":N`},
	{`remaining\(\d+s\)`, `remaining(N)`},
	{`"ttl":\d+,"granted`, `"ttl":N,"granted`},
	{`"TTL" : \d+\n"GrantedTTL"`, "\"TTL\" : N\n\"GrantedTTL\""},
	{`attached keys\(\[b a\]\)`, `attached keys([a b])`},
	{`attached keys\(\[d a\]\)`, `attached keys([a d])`},
	{`attached keys\(\[d c\]\)`, `attached keys([c d])`},
	{`"keys":\["Yg==","YQ=="\]`, `"keys":["YQ==","Yg=="]`},
	{`"Key" : "b"\n"Key" : "a"`, "\"Key\" : \"a\"\n\"Key\" : \"b\""},
	{`127\.0\.0\.1:\d+`, `LOCAL`},
	{`"ts":"[^"]*"`, `"ts":T`},
	{`0x[0-9a-f]+`, `ADDRESS`},
}

// mask puts names in the place of ids, and hides what belongs to this server and moment alone. A lease's keys have no order.
func (l *leaseNames) mask(s *server, text string) string {
	text = strings.ReplaceAll(text, s.clientURL, "CLIENT")
	text = strings.ReplaceAll(text, strings.TrimPrefix(s.clientURL, "http://"), "CLIENT")
	for _, m := range leaseMasks {
		text = regexp.MustCompile(m.pattern).ReplaceAllString(text, m.with)
	}
	return leaseIDsSaid.ReplaceAllStringFunc(text, func(said string) string {
		label, digits, base := "", said, 16
		if at := strings.IndexAny(said, ":"); at >= 0 {
			label, digits, base = said[:at+1], strings.Trim(said[at+1:], ` "`), 10
		}
		id, err := strconv.ParseInt(digits, base, 64)
		if err != nil || id < 1<<32 {
			return said
		}
		return label + l.name(id)
	})
}

func (l *leaseNames) name(id int64) string {
	for i, known := range *l {
		if known == id {
			return fmt.Sprint("LEASE", i+1)
		}
	}
	*l = append(*l, id)
	return fmt.Sprint("LEASE", len(*l))
}

// Calls that go on until they are interrupted, or lose what they hold.
func TestEtcdctlHoldsLocksAndElectionsAlike(t *testing.T) {
	a, b := startPair(t)
	heard := make(map[*server][]string)
	inBoth(t, a, b, func(s *server) error {
		heard[s] = s.playHolders(t)
		return nil
	})
	for i := range heard[a] {
		if heard[a][i] != heard[b][i] {
			t.Errorf("A: %s\nB: %s", heard[a][i], heard[b][i])
		}
	}
	t.Logf("compared %d calls:\n%s", len(heard[a]), strings.Join(heard[b], "\n"))
}

func (s *server) playHolders(t *testing.T) (heard []string) {
	names := new(leaseNames)
	note := func(call *runningCall, said string) {
		heard = append(heard, names.mask(s, "etcdctl "+call.args+"\n"+strings.TrimSpace(said)))
	}
	start := func(args string) *runningCall { return s.startCall(t, command{args: args}) }
	run := func(args string) string { return s.etcdctlSays(t, command{args: args}) }
	awaitKeys := func(prefix string, n int) {
		for giveUp := time.Now().Add(commandsSecs * time.Second); ; {
			if said := run("get " + prefix + " --prefix --count-only -w fields"); strings.Contains(said, fmt.Sprintf("\"Count\" : %d\n", n)) {
				return
			} else if time.Now().After(giveUp) {
				t.Fatalf("%s: %d keys never stand: %s", s.name, n, said)
			}
		}
	}

	// A lease that is kept alive until it is revoked.
	names.mask(s, run("lease grant 5"))
	kept := s.startCall(t, names.insert(command{args: "lease keep-alive LEASE1"}))
	kept.await(t, "keepalived")
	s.etcdctlSays(t, names.insert(command{args: "lease revoke LEASE1"}))
	said, code := kept.end(t)
	note(kept, fmt.Sprintf("exit code %d, %s", code, said[strings.LastIndex(said, "TTL(5)\n"):]))

	// The lock goes from one to the next when the first is interrupted, and when the next one's lease has run out.
	first := start("lock name")
	note(first, first.await(t, "name/"))
	second := start("lock name --ttl=2")
	awaitKeys("name/", 2)
	third := start("lock name echo third")
	awaitKeys("name/", 3)
	must(t, first.process.Process.Signal(syscall.SIGINT))
	_, code = first.end(t)
	note(first, fmt.Sprint("exit code ", code))
	note(second, second.await(t, "name/"))
	must(t, second.process.Process.Signal(os.Kill))
	said, code = third.end(t)
	note(third, fmt.Sprintf("exit code %d, %s", code, said))
	awaitKeys("name/", 0)

	// A holder whose lease is revoked says so.
	fourth := start("lock name --ttl=2")
	held := fourth.await(t, "name/")
	run("lease revoke " + regexp.MustCompile(`name/([0-9a-f]+)`).FindStringSubmatch(held)[1])
	said, code = fourth.end(t)
	note(fourth, fmt.Sprintf("exit code %d, %s", code, said))

	// Leaders resign when they are interrupted, and who listens hears of each.
	listener := start("elect office -l")
	leader := start("elect office one")
	note(leader, leader.await(t, "one"))
	listener.await(t, "one")
	next := start("elect office two")
	awaitKeys("office/", 2)
	must(t, leader.process.Process.Signal(syscall.SIGTERM))
	_, code = leader.end(t)
	note(leader, fmt.Sprint("exit code ", code))
	note(next, next.await(t, "two"))
	note(listener, listener.await(t, "two"))
	must(t, next.process.Process.Signal(syscall.SIGINT))
	_, code = next.end(t)
	note(next, fmt.Sprint("exit code ", code))
	must(t, listener.process.Process.Signal(syscall.SIGINT))
	_, code = listener.end(t)
	note(listener, fmt.Sprint("exit code ", code))
	return heard
}

// end waits until the call has ended, and returns what it printed and its exit code.
func (c *runningCall) end(t *testing.T) (string, int) {
	t.Helper()
	stop := time.AfterFunc(commandsSecs*time.Second, func() { _ = c.process.Process.Kill() })
	_ = c.process.Wait()
	if !stop.Stop() {
		t.Errorf("etcdctl %s: does not end", c.args)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.String(), c.process.ProcessState.ExitCode()
}
