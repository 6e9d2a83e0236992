// The clients of other languages: each one's smoke test runs against A and B.
//
// `run` installs them into target/interop. One that is not there is left out, which is an error when CI=true.
package interop

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const smokeSecs = 60

func TestClientsOfOtherLanguages(t *testing.T) {
	for _, language := range []struct {
		name    string
		command []string
	}{
		{"python", []string{"../../target/interop/python/bin/python", "python/smoke.py"}},
		{"node", []string{"node", "node/smoke.js"}},
	} {
		t.Run(language.name, func(t *testing.T) {
			if _, err := os.Stat(filepath.Join("../../target/interop", language.name, "installed")); err != nil {
				if os.Getenv("CI") == "true" {
					t.Fatal(err)
				}
				t.Skipf("the client for %s is not installed: see tests/interop/run", language.name)
			}
			// Each test counts revisions, so it has its servers to itself.
			a, b := startPair(t)
			for _, s := range []*server{a, b} {
				t.Run(s.name, func(t *testing.T) {
					t.Parallel()
					s.smoke(t, language.command)
				})
			}
		})
	}
}

// smoke runs a program that is told the server's address, and demands that it ends well.
func (s *server) smoke(t *testing.T, command []string) {
	modules, err := filepath.Abs("../../target/interop/node/node_modules")
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), smokeSecs*time.Second)
	defer cancel()
	process := exec.CommandContext(ctx, command[0], append(command[1:len(command):len(command)], strings.TrimPrefix(s.clientURL, "http://"))...)
	process.Env = append(os.Environ(), "NODE_PATH="+modules)
	if said, err := process.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, said)
	}
}
