package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A guest boots, runs scripts one after the other, tells how they ended, reaches the namespace that it
// is wired to, cannot write to the machine's files, and halts. Its kernel has ESP.
func TestGuest(t *testing.T) {
	if err := GuestMissing(); err != nil || os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatalf("root is needed; %v", err)
		}
		t.Skipf("root is needed; %v", err)
	}
	l, err := New(t.Context(), Options{Name: "guest-test"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	n, err := l.Netns("n")
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	g, err := l.Guest(t.Context(), n, "g", "tap0", 128)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("up after %v", time.Since(start))
	if err := n.Addr("tap0", "198.18.9.1/24"); err != nil {
		t.Fatal(err)
	}
	if out, err := g.Run(t.Context(), "ip addr add 198.18.9.2/24 dev vec0; ping -q -c 2 -i 0.05 -W 5 198.18.9.1"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := g.Run(t.Context(), "echo one; echo two >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "exit status 3: two") || out != "one\ntwo\n" {
		t.Errorf("a script that fails: %v, %q", err, out)
	}
	if _, err := g.Run(t.Context(), "touch "+l.Path("outside")); err == nil {
		t.Error("the guest wrote to the machine's file system")
	}
	if _, err := g.Run(t.Context(), `ip xfrm state add src 198.18.9.2 dst 198.18.9.1 proto esp spi 0x1001 mode tunnel aead 'rfc4106(gcm(aes))' 0x$(printf '%072d' 7) 128`); err != nil {
		t.Error(err)
	}
	if err := g.Halt(10 * time.Second); err != nil {
		t.Error(err)
	}

	// One that is not halted ends with the lab, and nothing of either is left.
	if _, err := l.Guest(t.Context(), n, "h", "tap1", 128); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := WaitFor(t.Context(), "the guests' processes to be gone", 10*time.Second, func() error {
		lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return err
		}
		for _, f := range lines {
			if text, err := os.ReadFile(f); err == nil && strings.Contains(string(text), "uml_dir="+filepath.Join(l.Dir, "guest-")) {
				return fmt.Errorf("%s: %q", f, text)
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
