package e2e

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardgate/internal/lab"
	"wardgate/policy"
	"wardgate/router/control"
)

// A connection that requires a postquantum preshared key (RFC 8784) is not set up without it, nor with
// another one on the other side; with it, it is, and its IKE SA is made before any CHILD SA (RFC 6023).
// Then its partner is sent to the other line of ours before the one in use goes (RFC 5685), without a gap.
func TestPPKAndRedirect(t *testing.T) {
	t.Parallel()
	n := newLine(t, "e2e-ppk")
	ctx := within(t, 90*time.Second)
	const id, other = "line-2026", "198.18.4.1"
	b := n.Sides[1].Router
	must(t,
		lab.Cable(b, "wan2", n.Middle, "b2"), n.Middle.Addr("b2", "198.18.4.254/24"), b.Addr("wan2", other+"/24"),
		b.IP("route", "add", "default", "via", "198.18.4.254", "metric", "100"))
	n.Sides[0].Everywhere, n.Sides[1].Everywhere = true, true
	must(t, n.Start(ctx, false, "", func(side int, d *policy.Document) {
		c := &d.Connections[0]
		c.PPK, c.PPKID, c.FirstChild = policy.PPKRequired, id, policy.FirstChildOwn
		if side == 0 {
			d.Peers[0].Gateways = append(d.Peers[0].Gateways, other)
		}
	}))
	key := func() string {
		k := make([]byte, 32)
		if _, err := rand.Read(k); err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(k)
	}
	right, wrong := key(), key()
	refused := func(side int, words ...string) {
		t.Helper()
		out, err := n.Sides[side].Wardgate(ctx, "up", "a-b", "--wait", "10s")
		if err == nil {
			t.Fatalf("side %d: the connection is up; want it refused: %s", side, out)
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("side %d: the error does not say %q: %v", side, w, err)
			}
		}
	}
	add := func(side int, key string, args ...string) string {
		t.Helper()
		out, err := n.Sides[side].WardgateReading(ctx, key+"\n", append([]string{"ppk", "add", id}, args...)...)
		must(t, err)
		return out
	}

	refused(0, "requires the postquantum preshared key", "wardgate ppk add "+id)
	mine := add(0, right)
	if st, err := os.Stat(filepath.Join(n.Sides[0].Dir, "state", "ppk", id)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v; want mode 0600", st, err)
	}
	refused(1, "requires the postquantum preshared key") // the other device has none
	add(1, wrong)
	refused(0, "AUTHENTICATION_FAILED")
	if _, err := n.Sides[1].WardgateReading(ctx, right, "ppk", "add", id); err == nil || !strings.Contains(err.Error(), "--replace") {
		t.Errorf("a key was replaced without being asked for: %v", err)
	}
	if its := add(1, right, "--replace"); its != mine {
		t.Errorf("the same key, and A says\n%sB says\n%s", mine, its)
	}
	must(t, lab.WaitFor(ctx, "the connection to stand", 20*time.Second, func() error {
		_, err := n.Sides[0].Wardgate(ctx, "up", "a-b")
		return err
	}))
	for i := range n.Sides {
		if c := connectionOf(ctx, t, n, i); c.PPK != id {
			t.Errorf("side %d: the keys have the postquantum preshared key %q; want %q", i, c.PPK, id)
		}
	}

	echo, err := n.Hosts[1].EchoUDP(addrPort(n.Hosts[1], lab.LinePorts[0]))
	must(t, err)
	defer echo.Close()
	stream, err := n.Hosts[0].Stream(n.Hosts[0].Addr, addrPort(n.Hosts[1], lab.LinePorts[0]), 2*time.Millisecond)
	must(t, err)
	for _, c := range []struct {
		side int
		to   string
		says string
	}{{1, "10.2.1.1", "not-our-address"}, {1, "198.18.1.1", "not-our-address"}, {0, "198.18.1.1", "it is there already"}} {
		out, err := n.Sides[c.side].Wardgate(ctx, "redirect", "--to", c.to, "--all")
		if !strings.Contains(fmt.Sprint(out, err), c.says) {
			t.Errorf("redirect to %s: %v\n%s; want %q", c.to, err, out, c.says)
		}
	}
	out, err := n.Sides[1].Wardgate(ctx, "redirect", "--to", other, "a-b")
	if err != nil || !strings.Contains(out, "told to go") {
		t.Fatalf("%v\n%s", err, out)
	}
	must(t, lab.WaitFor(ctx, "A to go to the other line", 30*time.Second, func() error {
		for i, f := range n.Sides {
			c := connectionOf(ctx, t, n, i)
			if at := []string{c.Gateway, c.LocalAddr}[i]; !strings.HasPrefix(at, other) || len(c.SAs) != 1 {
				return fmt.Errorf("%s: %s, %d SAs", f.Title, at, len(c.SAs))
			}
		}
		return nil
	}))
	if r := stream.Stop(2 * time.Second); len(r.Missing) > 0 {
		t.Errorf("%d of %d datagrams were lost on the way to the other line: %v", len(r.Missing), r.Sent, r.Missing)
	}
	must(t, b.IP("link", "set", lab.WANDev, "down")) // the maintenance begins
	stream, err = n.Hosts[0].Stream(n.Hosts[0].Addr, addrPort(n.Hosts[1], lab.LinePorts[0]), 2*time.Millisecond)
	must(t, err)
	from := time.Now()
	must(t, lab.WaitFor(ctx, "answers by the other line", 10*time.Second, func() error {
		if !stream.LastAnswer().After(from.Add(200 * time.Millisecond)) {
			return errors.New("none yet")
		}
		return nil
	}))
	stream.Stop(0)

	_, err = n.Sides[0].Wardgate(ctx, "ppk", "remove", id)
	must(t, err)
	waitDown(ctx, t, n, 1)
	refused(0, "requires the postquantum preshared key")
}

func waitDown(ctx context.Context, t *testing.T, n *lab.Line, side int) {
	t.Helper()
	must(t, n.Sides[side].WaitState(ctx, "a-b", control.ConnIdle, 10*time.Second))
}
