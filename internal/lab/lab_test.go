package lab

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var errNothing = errors.New("nothing yet")

// needRoot fails in CI, and skips elsewhere, where the test may not make namespaces.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("network namespaces need root")
	}
	t.Skip("network namespaces need root")
}

func newLab(t *testing.T, name string) *Lab {
	t.Helper()
	needRoot(t)
	l, err := New(t.Context(), Options{Name: name, Bin: "."})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// pair makes two namespaces joined by a cable, 198.18.9.1 and 198.18.9.2.
func pair(t *testing.T, l *Lab) (a, b *Netns) {
	t.Helper()
	var err error
	if a, err = l.Netns("a"); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Netns("b"); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{Cable(a, "eth0", b, "eth0"), a.Addr("eth0", "198.18.9.1/24"), b.Addr("eth0", "198.18.9.2/24")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

func spaces(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

func TestBurstAndCapture(t *testing.T) {
	t.Parallel()
	l := newLab(t, "t-burst")
	a, b := pair(t, l)
	capture, err := l.Capture(t.Context(), b, "wire", "eth0")
	if err != nil {
		t.Fatal(err)
	}
	to := netip.MustParseAddrPort("198.18.9.2:7007")
	echo, err := b.EchoUDP(to)
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	r, err := a.Burst(t.Context(), netip.MustParseAddr("198.18.9.1"), to, 20, time.Millisecond, 2*time.Second)
	if err != nil || r.Received != 20 || len(r.Missing) != 0 || r.First <= 0 {
		t.Errorf("burst: %+v, %v", r, err)
	}
	if n := echo.Seen(netip.MustParseAddr("198.18.9.1")); n != 20 {
		t.Errorf("the server saw %d datagrams, want 20", n)
	}
	if err := WaitFor(t.Context(), "the capture", 3*time.Second, func() error {
		w, err := capture.Wire(netip.MustParsePrefix("198.18.9.2/32"))
		if err == nil && len(w.Clear) < 40 {
			err = os.ErrNotExist
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	// Nobody answers here: the burst says which ones are missing, and does not hang.
	r, err = a.Burst(t.Context(), netip.MustParseAddr("198.18.9.1"), netip.MustParseAddrPort("198.18.9.2:7008"), 3, time.Millisecond, 50*time.Millisecond)
	if err != nil || r.Received != 0 || len(r.Missing) != 3 {
		t.Errorf("burst to a closed port: %+v, %v", r, err)
	}
}

func TestStream(t *testing.T) {
	t.Parallel()
	l := newLab(t, "t-stream")
	a, b := pair(t, l)
	to := netip.MustParseAddrPort("198.18.9.2:7007")
	echo, err := b.EchoUDP(to)
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.Stream(netip.MustParseAddr("198.18.9.1"), to, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	answered := func(after time.Time) func() error {
		return func() error {
			if !s.LastAnswer().After(after) {
				return errNothing
			}
			return nil
		}
	}
	if err := WaitFor(t.Context(), "an answer", 5*time.Second, answered(time.Time{})); err != nil {
		t.Error(err)
	}
	echo.Close()
	last := s.LastAnswer()
	for range 20 { // at least so many are sent to nobody
		time.Sleep(2 * time.Millisecond)
	}
	if echo, err = b.EchoUDP(to); err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	if err := WaitFor(t.Context(), "an answer after the pause", 5*time.Second, answered(last.Add(20*time.Millisecond))); err != nil {
		t.Error(err)
	}
	r := s.Stop(time.Second)
	if r.Received == 0 || len(r.Missing) == 0 || r.Sent != r.Received+len(r.Missing) {
		t.Errorf("stream with a pause: %+v", r)
	}
}

func TestStudyOverACable(t *testing.T) {
	t.Parallel()
	needFile(t, baseImage)
	needFile(t, "/usr/bin/storescp")
	l := newLab(t, "t-study")
	a, b := pair(t, l)
	if err := CTSeries(t.Context(), l.Path("sent"), 7); err != nil {
		t.Fatal(err)
	}
	if _, err := l.StartStoreSCP(t.Context(), b, "storescp", "PACS", l.Path("received"), 11112); err != nil {
		t.Fatal(err)
	}
	if err := a.SendStudy(t.Context(), l.Path("sent"), "PACS", "198.18.9.2", 11112); err != nil {
		t.Fatal(err)
	}
	c, err := CompareStudies(l.Path("sent"), l.Path("received"))
	if err != nil || c.Images != 7 {
		t.Errorf("%+v, %v", c, err)
	}
}

// What a lab leaves behind when it is killed is gone after the next New with its name; a process
// that only has the noted PID, but another start time, is left alone.
func TestLeftoversOfAKilledRun(t *testing.T) {
	t.Parallel()
	needRoot(t)
	before := spaces(t)
	l, err := New(t.Context(), Options{Name: "t-killed", Bin: "."})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), Options{Name: "t-killed", Bin: "."}); err == nil {
		t.Error("two labs of one name at a time")
	}
	a, err := l.Netns("a")
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.Start(a, "sleep", nil, "sleep", "600")
	if err != nil {
		t.Fatal(err)
	}
	other := exec.Command("sleep", "600")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	}()
	if err := l.note("pids", strings.Join([]string{strconv.Itoa(other.Process.Pid), "1"}, " ")); err != nil {
		t.Fatal(err)
	}
	if err := l.lock.Close(); err != nil { // what the kernel does when the run is killed
		t.Fatal(err)
	}
	l2, err := New(t.Context(), Options{Name: "t-killed", Bin: "."})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if err := unix.Kill(other.Process.Pid, 0); err != nil {
		t.Error("a process that was not the lab's has been ended")
	}
	if err := l2.Close(); err != nil {
		t.Error(err)
	}
	for _, s := range spaces(t) {
		if strings.HasPrefix(s, nsPrefix+"t-killed") && !slices.Contains(before, s) {
			t.Errorf("namespace %s is still there", s)
		}
	}
}

func TestProcessEndsAndTells(t *testing.T) {
	t.Parallel()
	l := newLab(t, "t-proc")
	a, err := l.Netns("a")
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.Start(a, "words", nil, "sh", "-c", "echo last words; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if err := p.Running(); err == nil || !strings.Contains(err.Error(), "last words") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("Running: %v", err)
	}
	stubborn, err := l.Start(a, "stubborn", nil, "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done")
	if err != nil {
		t.Fatal(err)
	}
	if err := WaitFor(t.Context(), "the shell", 2*time.Second, stubborn.Running); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // until its trap is set
	if err := stubborn.Stop(200 * time.Millisecond); err == nil {
		t.Error("a process that ignores SIGTERM was said to have ended by itself")
	}
}
