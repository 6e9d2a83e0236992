// Servers under test: started on free loopback ports with a directory of their own, killed, started again.
//
// Two stand in every comparison: A, the reference (the real etcd), and B, the one compared with it (ours).
// The environment names their programs, and flags to add: A, B, A_FLAGS, B_FLAGS; METASTORE_BIN is B's other name.
package interop

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	readySecs    = 30
	stopSecs     = 20
	startsMax    = 3
	messageBytes = 256 << 20

	logShownBytes = 4000
)

// server is one running server, or one that was stopped and can be started again on its directory.
type server struct {
	name    string
	program string
	ours    bool
	flags   []string
	dir     string

	clientURL, peerURL string
	memberID           uint64
	process            *exec.Cmd
	exited             chan struct{}
	log                *bytes.Buffer
	conn               *grpc.ClientConn
}

// startPair starts A and B side by side on empty directories, with flags of the test's own.
func startPair(t *testing.T, flags ...string) (a, b *server) {
	t.Helper()
	a = newServer(t, "A", programA(), flags...)
	b = newServer(t, "B", programB(), flags...)
	inBoth(t, a, b, (*server).start)
	return a, b
}

// startB starts the server that is compared, with flags of the test's own.
func startB(t *testing.T, flags ...string) *server {
	t.Helper()
	b := newServer(t, "B", programB(), flags...)
	if err := b.start(); err != nil {
		t.Fatalf("B (%s): %v\n%s", b.program, err, b.lastLog())
	}
	return b
}

func programA() string {
	return cmp.Or(os.Getenv("A"), "../../target/interop/etcd")
}

func programB() string {
	return cmp.Or(os.Getenv("B"), os.Getenv("METASTORE_BIN"), "../../target/release/metastore")
}

// isOurs tells whether a program is MetaStore, which has flags that etcd has not.
func isOurs(program string) bool {
	version, _ := exec.Command(program, "--version").Output()
	return bytes.Contains(version, []byte("MetaStore"))
}

func newServer(t *testing.T, name, program string, flags ...string) *server {
	t.Helper()
	s := &server{name: name, program: program, ours: isOurs(program), flags: slices.Concat(flags, strings.Fields(os.Getenv(name+"_FLAGS"))), dir: t.TempDir()}
	t.Cleanup(s.kill)
	t.Logf("%s: %s %s", s.name, s.program, strings.Join(s.flags, " "))
	return s
}

// inBoth does the same with A and B at once and fails the test if either fails.
func inBoth(t *testing.T, a, b *server, do func(*server) error) {
	t.Helper()
	var errA, errB error
	var wait sync.WaitGroup
	wait.Go(func() { errA = do(a) })
	errB = do(b)
	wait.Wait()
	for s, err := range map[*server]error{a: errA, b: errB} {
		if err != nil {
			t.Fatalf("%s (%s): %v\n%s", s.name, s.program, err, s.lastLog())
		}
	}
}

// start runs the server and returns once it answers. A port may be taken between its choice and its use; then it
// tries with others, but only on the first start: later ones keep the addresses that the data directory knows.
func (s *server) start() error {
	first := s.clientURL == ""
	for attempt := 1; ; attempt++ {
		if first {
			var err error
			if s.clientURL, s.peerURL, err = freeURLs(); err != nil {
				return err
			}
		}
		err := s.startOnce()
		if err == nil || !first || attempt == startsMax {
			return err
		}
		s.kill()
		if err := os.RemoveAll(s.dataDir()); err != nil {
			return err
		}
	}
}

func (s *server) startOnce() error {
	s.log = new(bytes.Buffer)
	s.process = exec.Command(s.program, append([]string{
		"--name", "default",
		"--data-dir", s.dataDir(),
		"--listen-client-urls", s.clientURL,
		"--advertise-client-urls", s.clientURL,
		"--listen-peer-urls", s.peerURL,
		"--initial-advertise-peer-urls", s.peerURL,
		"--initial-cluster", "default=" + s.peerURL,
	}, s.flags...)...)
	s.process.Stdout, s.process.Stderr = s.log, s.log
	if err := s.process.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	s.exited = exited
	go func(process *exec.Cmd) {
		_ = process.Wait()
		close(exited)
	}(s.process)

	var err error
	if s.conn, err = s.dial(); err != nil {
		return err
	}
	return s.waitReady()
}

// dial makes a connection that soon tries again when it is lost.
func (s *server) dial() (*grpc.ClientConn, error) {
	return grpc.NewClient(strings.TrimPrefix(s.clientURL, "http://"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytes), grpc.MaxCallSendMsgSize(messageBytes)),
		reconnectSoon)
}

var reconnectSoon = grpc.WithConnectParams(grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.2, MaxDelay: 200 * time.Millisecond},
	MinConnectTimeout: time.Second,
})

// waitReady waits for a leader and an answered read.
func (s *server) waitReady() error {
	giveUp := time.After(readySecs * time.Second)
	for {
		err := s.isReady()
		if err == nil {
			return nil
		}
		select {
		case <-s.exited:
			return fmt.Errorf("it ended: %v", s.process.ProcessState)
		case <-giveUp:
			return fmt.Errorf("not ready after %d s: %w", readySecs, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (s *server) isReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	status, err := pb.NewMaintenanceClient(s.conn).Status(ctx, &pb.StatusRequest{})
	if err != nil && strings.Contains(err.Error(), "user name is empty") {
		return nil // It answers, though only to its users.
	}
	if err != nil {
		return err
	}
	if status.Leader == 0 {
		return errors.New("it has no leader")
	}
	s.memberID = status.Header.MemberId
	_, err = pb.NewKVClient(s.conn).Range(ctx, &pb.RangeRequest{Key: []byte("ready")})
	return err
}

// kill ends the process as a crash of it would, without a chance to tidy up.
func (s *server) kill() {
	if s.process == nil || s.process.Process == nil {
		return
	}
	if s.conn != nil {
		_ = s.conn.Close()
	}
	_ = s.process.Process.Kill()
	<-s.exited
	s.process = nil
}

// restart kills the server and starts it on the same directory and addresses.
func (s *server) restart() error {
	s.kill()
	return s.startOnce()
}

// stop ends the process by SIGTERM and demands that it ends in time and well.
func (s *server) stop() error {
	defer s.kill()
	if err := s.process.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-s.exited:
	case <-time.After(stopSecs * time.Second):
		return fmt.Errorf("still running %d s after SIGTERM", stopSecs)
	}
	// etcd hands the signal on to itself after its own clean-up, so it may end "by signal".
	state := s.process.ProcessState.Sys().(syscall.WaitStatus)
	if !s.process.ProcessState.Success() && !(state.Signaled() && state.Signal() == syscall.SIGTERM) {
		return fmt.Errorf("after SIGTERM: %v", s.process.ProcessState)
	}
	return nil
}

func (s *server) dataDir() string { return filepath.Join(s.dir, "data") }

// lastLog is the end of what the server wrote. Only a server that has ended is asked, so the buffer is still.
func (s *server) lastLog() string {
	s.kill()
	if s.log == nil {
		return ""
	}
	text := s.log.String()
	if at := strings.Index(text, "panic"); at >= 0 {
		text = text[at:min(len(text), at+logShownBytes)]
	}
	return "its last words:\n" + text[max(0, len(text)-logShownBytes):]
}

func freeURLs() (client, peer string, err error) {
	var urls [2]string
	for i := range urls {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", "", err
		}
		defer listener.Close()
		urls[i] = "http://" + listener.Addr().String()
	}
	return urls[0], urls[1], nil
}
