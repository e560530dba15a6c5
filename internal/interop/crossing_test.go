package interop

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/internal/labca"
)

// crossing is what strongSwan does, and what we begin when the nth message that it sends for it has
// arrived here, but was not taken up yet: so both ends have a request under way that the other one has not
// seen, whatever the machine does (RFC 7296, section 2.25).
type crossing struct {
	theirs, ours string
	nth          int
}

const (
	rekeyChild  = "rekey CHILD SA"
	rekeyIKE    = "rekey IKE SA"
	deleteChild = "delete CHILD SA"
	deleteIKE   = "delete IKE SA"
)

// crossings are all pairs, and the later steps of strongSwan's rekeys, which take so many messages of its
// own: CREATE_CHILD_SA, IKE_FOLLOWUP_KE where there are additional key exchanges, Delete.
func crossings(steps int) (list []crossing) {
	all := []string{rekeyChild, rekeyIKE, deleteChild, deleteIKE}
	for _, theirs := range all {
		for _, ours := range all {
			list = append(list, crossing{theirs, ours, 1})
		}
	}
	for _, theirs := range all[:2] {
		for _, ours := range all {
			for nth := 2; nth <= steps; nth++ {
				list = append(list, crossing{theirs, ours, nth})
			}
		}
	}
	for range 3 { // who loses is chance
		list = append(list, crossing{rekeyChild, rekeyChild, 1}, crossing{rekeyIKE, rekeyIKE, 1})
	}
	return list
}

// TestStrongSwanCrossing: rekeys and deletes of both ends cross, with and without additional key exchanges
// (RFC 9370, section 2.2.4), whoever initiated. Both ends agree then, and data flows.
func TestStrongSwanCrossing(t *testing.T) {
	for name, o := range map[string]sceneOptions{
		"6, ML-KEM": {six: true, ike: hybridIKE, esp: hybridESP, key: labca.P256},
		"5.9":       {ike: classicalIKE, esp: classicalESP, key: labca.P256},
	} {
		steps := 2
		if o.six {
			steps = 3
		}
		for _, weInitiate := range []bool{true, false} {
			t.Run(name+map[bool]string{true: " responds", false: " initiates"}[weInitiate], func(t *testing.T) {
				t.Parallel()
				sc := newScene(t, o)
				sc.connect(t, weInitiate)
				f := sc.flow(t, false)
				f.both("the connection") // so that we may ask for something at once
				crossed := 0
				list := crossings(steps)
				for _, c := range list {
					what := fmt.Sprintf("strongSwan: %s, we: %s at message %d", c.theirs, c.ours, c.nth)
					switch {
					case sc.cross(c):
						crossed++
					case c.nth == 1:
						t.Errorf("%s: did not cross", what)
					}
					sc.agree(t, what)
					sc.d.locked(func() { sc.d.failed = nil })
					// What is gone is made again by whoever initiated at first.
					if i, c := sc.counts(); i == 0 || c == 0 {
						sc.connect(t, weInitiate)
						sc.agree(t, what+": made again")
					}
					f.both(what)
				}
				lost, of, lost2, of2 := f.stop(t)
				n := sc.ss.said("collision")
				t.Logf("%d of %d crossed; strongSwan saw %d collisions of rekeys, and said TEMPORARY_FAILURE %d times; lost while SAs were deleted: %d of %d and %d of %d pings",
					crossed, len(list), n, sc.ss.said("N(TEMP_FAIL)"), lost, of, lost2, of2)
				if n == 0 {
					t.Error("strongSwan saw no collision")
				}
			})
		}
	}
}

// counts are our IKE SAs and CHILD SAs.
func (sc *scene) counts() (ikes, children int) {
	sc.d.locked(func() { ikes, children = len(sc.d.ike), len(sc.d.children) })
	return ikes, children
}

// cross does what c says. It tells whether our request left before strongSwan's message was taken up.
func (sc *scene) cross(c crossing) (crossed bool) {
	d := sc.d
	ikeSA, child := d.only()
	done := make(chan bool, 1)
	d.onArrival(c.nth, func() {
		before := d.requests.Load()
		switch c.ours {
		case rekeyChild:
			_ = d.ep.RekeyChild(child.ID)
		case deleteChild:
			_ = d.ep.DeleteChild(child.ID, "the test wants it so")
		case rekeyIKE:
			_ = d.ep.RekeyIKE(ikeSA.ID)
		case deleteIKE:
			d.ep.Terminate("clinic", "the test wants it so")
		}
		// At strongSwan's last messages there may be nothing left to rekey or delete for us.
		patience := 5 * time.Second
		if c.nth > 1 {
			patience = 100 * time.Millisecond
		}
		for end := time.Now().Add(patience); d.requests.Load() == before && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		done <- d.requests.Load() > before
	})
	// An error says that something crossed it.
	_, _ = sc.ss.try(map[string][]string{
		rekeyChild: {"--rekey", "--child", "net"}, rekeyIKE: {"--rekey", "--ike", "dual"},
		deleteChild: {"--terminate", "--child", "net", "--timeout", "3"}, deleteIKE: {"--terminate", "--ike", "dual", "--timeout", "3"},
	}[c.theirs]...)
	select {
	case crossed = <-done:
	case <-time.After(5 * time.Second): // there was no nth message
		d.arrival.Store(nil)
	}
	return crossed
}

// agree waits until both ends have the same SAs, at most one of each kind, and neither says anything more.
func (sc *scene) agree(t *testing.T, what string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		said := sc.d.messages.Load()
		out, err := sc.ss.try("--list-sas")
		ikes, children := sc.counts()
		same := err == nil && ikes <= 1 && children <= 1 &&
			strings.Count(out, "ESTABLISHED, IKEv2") == ikes && strings.Count(out, "INSTALLED, TUNNEL") == children
		var have []ike.SAStatus
		for _, s := range sc.d.ep.Snapshot() {
			if s.State != ike.StateEstablished {
				continue
			}
			have = append(have, s)
			same = same && strings.Contains(out, fmt.Sprintf("%016x", s.SPIi))
			for _, c := range s.Children {
				same = same && strings.Contains(out, fmt.Sprintf("%08x", c.SPIIn)) && strings.Contains(out, fmt.Sprintf("%08x", c.SPIOut))
			}
		}
		if same {
			time.Sleep(40 * time.Millisecond)
			if sc.d.messages.Load() == said {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatalf("%s: we have %d IKE SAs and %d CHILD SAs, %+v; strongSwan has\n%s", what, ikes, children, have, out)
		}
	}
}
