package e2e

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func netnsList(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("ip", "netns", "list").Output()
	must(t, err)
	var names []string
	for line := range strings.Lines(string(out)) {
		if name := strings.Fields(line); len(name) > 0 && strings.HasPrefix(name[0], "wg-demo") {
			names = append(names, name[0])
		}
	}
	return names
}

// The demo ends well, twice, and says what it must say; interrupted at any time it leaves nothing
// behind, and a run after it was killed clears up and ends well.
func TestDemo(t *testing.T) {
	needRoot(t)
	before := netnsList(t)
	demo := func() (*exec.Cmd, *bytes.Buffer) {
		var out bytes.Buffer
		cmd := exec.Command(filepath.Join(bin, "wardgate-lab"), "demo", "--bin", bin)
		cmd.Stdout, cmd.Stderr = &out, &out
		return cmd, &out
	}
	whole := func(name string) {
		cmd, out := demo()
		err := cmd.Run()
		t.Logf("%s:\n%s", name, out) // it says itself how long it took
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, want := range []string{
			"first packet to first reply", "300 images received, 300 sent", "all equal",
			"relay", "none arrived at C", "Status of hospital A", "no tunnel",
			"from `wardgate join` to the first tunnel", "B now reaches C", "B no longer reaches A", "a-c is down", "b-c is down", "done in",
		} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: the output does not say %q", name, want)
			}
		}
	}
	left := func(when string) {
		if now := netnsList(t); !slices.Equal(now, before) {
			t.Errorf("%s: namespaces %v; want %v as before", when, now, before)
		}
	}
	whole("first run")
	left("after the first run")

	for _, after := range []time.Duration{100 * time.Millisecond, 1500 * time.Millisecond, 6 * time.Second} {
		cmd, out := demo()
		must(t, cmd.Start())
		time.Sleep(after) // the interruption comes at any time: this is the test's input
		must(t, cmd.Process.Signal(syscall.SIGINT))
		err := cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 130 {
			t.Errorf("interrupted after %v: exit code %d (%v); want 130\n%s", after, code, err, out)
		}
		left(fmt.Sprintf("interrupted after %v", after))
	}

	cmd, _ := demo()
	must(t, cmd.Start())
	time.Sleep(3 * time.Second)
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed: that is its exit
	whole("second run, after a killed one")
	left("after the second run")
}
