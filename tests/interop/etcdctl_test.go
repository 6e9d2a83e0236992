// etcdctl against A and B: the same commands, and equal words, exit codes and JSON.
package interop

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	etcdctl      = "../../target/interop/etcdctl"
	commandsSecs = 20
)

// command is one call of etcdctl: its arguments, split at spaces, and what it reads from stdin.
type command struct {
	args  string
	stdin string
}

// session is played from an empty store, in order.
var session = []command{
	{args: "get nothing"},
	{args: "put foo bar"},
	{args: "put foo bar2 --prev-kv"},
	{args: "put a 1"},
	{args: "put ab 22"},
	{args: "put abc 0"},
	{args: "put b", stdin: "from stdin"},
	{args: "put c 3"},
	{args: "put c --ignore-value"},
	{args: "put c 4 --ignore-lease"},
	{args: "put absent --ignore-value"},
	{args: "put c 5 --lease=1234"},
	{args: "get foo"},
	{args: "get foo -w json"},
	{args: "get foo -w fields"},
	{args: "get foo --hex"},
	{args: "get foo --print-value-only"},
	{args: "get a --prefix"},
	{args: "get a --prefix -w json"},
	{args: "get a c"},
	{args: "get c a"},
	{args: "get ab --from-key"},
	{args: "get  --prefix --keys-only"},
	{args: "get a --prefix --count-only"},
	{args: "get a --prefix --count-only -w fields"},
	{args: "get a --prefix --limit=2"},
	{args: "get a --prefix --limit=2 -w json"},
	{args: "get a --from-key --sort-by=VALUE"},
	{args: "get a --from-key --sort-by=VALUE --order=DESCEND"},
	{args: "get a --from-key --sort-by=KEY --order=DESCEND --limit=3"},
	{args: "get a --from-key --sort-by=CREATE --order=DESCEND"},
	{args: "get a --from-key --sort-by=MODIFY"},
	{args: "get a --from-key --sort-by=VERSION --order=ASCEND -w json"},
	{args: "get foo --rev=1"},
	{args: "get foo --rev=2"},
	{args: "get foo --rev=3 -w json"},
	{args: "get foo --rev=999"},
	{args: "get foo --consistency=s"},
	{args: "get foo --min-mod-rev=3 --prefix"},
	{args: "get a --from-key --max-create-rev=5 --keys-only"},

	{args: "txn", stdin: "value(\"foo\") = \"bar2\"\n\nput foo swapped\nget foo\n\nget foo\n\n"},
	{args: "txn", stdin: "value(\"foo\") = \"bar2\"\n\nput foo never\n\nget foo\nget a --prefix\n\n"},
	{args: "txn", stdin: "mod(\"foo\") > \"1\"\nversion(\"nothing\") = \"0\"\ncreate(\"a\") < \"100\"\n\ndel ab\nput ab again\n\n\n"},
	{args: "txn", stdin: "mod(\"foo\") > \"1\"\nversion(\"nothing\") = \"0\"\ncreate(\"a\") != \"100\"\n\ndel ab\nput d 4\n\n\n"},
	{args: "txn -w json", stdin: "value(\"foo\") != \"0\"\n\nget a\nput e 5 --prev-kv\ndel d --prev-kv\n\n\n"},
	{args: "txn -w fields", stdin: "\nget e\n\n\n"},

	{args: "del nothing"},
	{args: "del d"},
	{args: "put e 6"},
	{args: "del e --prev-kv"},
	{args: "put p1 1"},
	{args: "put p2 2"},
	{args: "put p3 3"},
	{args: "del p --prefix --prev-kv"},
	{args: "del a abc -w json"},
	{args: "del b --from-key --prev-kv -w json"},
	{args: "get  --prefix -w json"},
	{args: "get  --prefix --rev=10 -w json"},

	{args: "endpoint hashkv"},
	{args: "endpoint hashkv --rev=5 -w json"},
	{args: "endpoint hashkv --rev=9999"},
	{args: "compaction 5"},
	{args: "get foo --rev=4"},
	{args: "get foo --rev=5"},
	{args: "compaction 5"},
	{args: "compaction 10 --physical"},
	{args: "compaction 9999"},
	{args: "compaction 12 -w json"},
	{args: "get  --prefix --rev=12 -w json"},
	{args: "defrag"},
	{args: "defrag --cluster"},
	{args: "defrag -w json"},
	{args: "get  --prefix --rev=12 -w json"},
	{args: "endpoint hashkv -w json"},

	{args: "member list"},
	{args: "member list -w json"},
	{args: "member list -w fields"},
	{args: "endpoint status"},
	{args: "endpoint status -w json"},
	{args: "endpoint status -w fields"},
	{args: "endpoint health"},
	{args: "endpoint health -w json"},
	{args: "endpoint status --cluster"},
}

func TestEtcdctlSeesNoDifference(t *testing.T) {
	a, b := startPair(t)
	saySame(t, a, b, session, func(s *server, c command) string { return s.etcdctl(t, c) })
}

// saySame runs a session with both servers, one command after the other, and compares what each says.
func saySame(t *testing.T, a, b *server, session []command, say func(*server, command) string) {
	t.Helper()
	for _, c := range session {
		saidA, saidB := say(a, c), say(b, c)
		if saidA != saidB {
			t.Errorf("etcdctl %s\nstdin: %q\nA: %s\nB: %s", c.args, c.stdin, saidA, saidB)
		}
	}
	t.Logf("compared %d commands", len(session))
}

// etcdctl runs one command and returns its exit code and what it printed, without what belongs to this server alone.
func (s *server) etcdctl(t *testing.T, c command) string {
	t.Helper()
	return s.mask(s.etcdctlSays(t, c))
}

// etcdctlSays runs one command and returns its exit code and what it printed.
func (s *server) etcdctlSays(t *testing.T, c command) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandsSecs*time.Second)
	defer cancel()
	process := exec.CommandContext(ctx, etcdctl, append([]string{"--endpoints", s.clientURL}, strings.Split(c.args, " ")...)...)
	process.Stdin = strings.NewReader(c.stdin)
	var out, err bytes.Buffer
	process.Stdout, process.Stderr = &out, &err
	_ = process.Run()
	return fmt.Sprintf("exit code %d\n%s%s", process.ProcessState.ExitCode(), out.String(), err.String())
}

// watchCalls are calls of `etcdctl watch`; each hears the value "caught-up" last of what was there, and "end" last of all.
var watchCalls = []command{
	{args: "watch foo --rev=1"},
	{args: "watch foo --rev=1 --prev-kv"},
	{args: "watch f --prefix --rev=1 --prev-kv"},
	{args: "watch f --prefix --rev=4"},
	{args: "watch  --prefix --rev=1"},
	{args: "watch foo z --rev=3 --prev-kv"},
	{args: "watch -i", stdin: "watch foo --rev=1\n"},
}

// answeredWatches are calls of `etcdctl watch` that end, and what they hear first.
var answeredWatches = []command{
	{args: "watch foo --rev=-1"},
	{args: "watch foo --rev=3"},
	{args: "watch foo bar"},
	{args: "watch foo foo --prev-kv"},
	{args: "watch"},
}

// revisionAfterAll is the one that follows the writes which watchCalls hear.
const revisionAfterAll = 15

func TestEtcdctlWatchesAlike(t *testing.T) {
	a, b := startPair(t)
	var heard [2][]string
	for i, s := range []*server{a, b} {
		run := func(args string) { s.etcdctl(t, command{args: args}) }
		run("put foo one")
		run("put foo two")
		run("put other thing")
		run("del foo")
		run("put foo three")
		run("put food --prev-kv=true meal")
		run("del f --prefix")
		run("put foo caught-up")
		var calls []*runningCall
		for _, c := range watchCalls {
			calls = append(calls, s.startCall(t, c))
		}
		for _, call := range calls {
			call.await(t, "caught-up")
		}
		// From here on they hear what happens, as it happens.
		run("put foo 4")
		run("del foo")
		run("put foo 5")
		s.etcdctl(t, command{args: "txn", stdin: "\nput foo 6\nput fool 7\ndel other\n\n\n"})
		run("put foo end")
		for _, call := range calls {
			heard[i] = append(heard[i], call.args+"\n"+call.await(t, "end"))
		}
		// One change at a time has but one answer, so that its JSON can be compared.
		call := s.startCall(t, command{args: fmt.Sprintf("watch foo --rev=%d --prev-kv -w json", revisionAfterAll)})
		run("put foo next")
		heard[i] = append(heard[i], call.args+"\n"+s.mask(call.await(t, "bmV4dA==")))
		call = s.startCall(t, command{args: "watch -i", stdin: "watch foo\nprogress\n"})
		heard[i] = append(heard[i], call.args+"\n"+call.await(t, "progress notify"))
		run("compaction 5")
		for _, c := range answeredWatches {
			heard[i] = append(heard[i], c.args+"\n"+s.etcdctl(t, c))
		}
	}
	for n := range heard[0] {
		if heard[0][n] != heard[1][n] {
			t.Errorf("etcdctl %s\n\nA heard: %s\nB heard: %s", strings.SplitN(heard[0][n], "\n", 2)[0], heard[0][n], heard[1][n])
		}
	}
	t.Logf("compared %d watches; the last:\n%s", len(heard[0]), strings.Join(heard[0][len(watchCalls):], "\n"))
}

// runningCall is a call of etcdctl that goes on.
type runningCall struct {
	command
	process *exec.Cmd

	mu  sync.Mutex
	out bytes.Buffer
	// changed holds a token when it has printed more.
	changed chan struct{}
}

func (c *runningCall) Write(text []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
	return c.out.Write(text)
}

func (s *server) startCall(t *testing.T, c command) *runningCall {
	t.Helper()
	call := &runningCall{command: c, changed: make(chan struct{}, 1)}
	call.process = exec.Command(etcdctl, append([]string{"--endpoints", s.clientURL}, strings.Split(c.args, " ")...)...)
	call.process.Stdout, call.process.Stderr = call, call
	// It must not see the end of what it reads: it would stop.
	stdin, err := call.process.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := call.process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = call.process.Process.Kill()
		_ = call.process.Wait()
	})
	if _, err := io.WriteString(stdin, c.stdin); err != nil {
		t.Fatal(err)
	}
	return call
}

// await waits until it has printed a line with a text in it, and returns all that it printed.
func (c *runningCall) await(t *testing.T, text string) string {
	t.Helper()
	giveUp := time.After(commandsSecs * time.Second)
	for {
		c.mu.Lock()
		said := c.out.String()
		c.mu.Unlock()
		if strings.Contains(said, text) && strings.HasSuffix(said, "\n") {
			return said
		}
		select {
		case <-c.changed:
		case <-giveUp:
			t.Fatalf("etcdctl %s: waited in vain for %q; it said: %s", c.args, text, said)
		}
	}
}

// masks hide ids, terms, sizes and times; each keeps the words around what it hides.
var masks = []struct{ pattern, with string }{
	{`"(cluster_id|member_id|raft_term|ID|leader|raftIndex|raftAppliedIndex|raftTerm|dbSize|dbSizeInUse)":\d+`, `"$1":N`},
	{`"(ClusterID|MemberID|RaftTerm|ID|Leader|RaftIndex|RaftAppliedIndex|DBSize|DBSizeInUse|DbSize|DbSizeInUse)" ?: ?"?[0-9a-f]+"?`, `"$1" : N`},
	{`[0-9]+(\.[0-9]+)? ?[kM]?B\b`, `SIZE`},
	{`[0-9.]+(ns|µs|ms|s)\b`, `TIME`},
	{`\b\d+%`, `PERCENT`},
	{`(true|false), \d+, \d+, \d+, `, `$1, TERM, INDEX, INDEX, `},
	{`127\.0\.0\.1:\d+`, `LOCAL`},
	{`"ts":"[^"]*"`, `"ts":T`},
	{`0x[0-9a-f]+`, `ADDRESS`},
}

func (s *server) mask(text string) string {
	text = strings.NewReplacer(s.clientURL, "CLIENT", s.peerURL, "PEER", strings.TrimPrefix(s.clientURL, "http://"), "CLIENT",
		fmt.Sprintf("%x", s.memberID), "MEMBER").Replace(text)
	for _, m := range masks {
		text = regexp.MustCompile(m.pattern).ReplaceAllString(text, m.with)
	}
	return text
}
