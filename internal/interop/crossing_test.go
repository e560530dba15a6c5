package interop

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"wardgate/internal/labca"
)

// TestStrongSwanCrossing: both ends rekey at the same time, again and again, with and without
// additional key exchanges (RFC 9370, section 2.2.4). One IKE SA and one CHILD SA are left.
func TestStrongSwanCrossing(t *testing.T) {
	for name, o := range map[string]sceneOptions{
		"6, ML-KEM": {six: true, ike: "aes256gcm16-prfsha384-x25519-ke1_mlkem768", esp: "aes256gcm16-x25519-ke1_mlkem768", key: labca.P256},
		"5.9":       {ike: "aes256gcm16-prfsha384-x25519", esp: "aes256gcm16-x25519", key: labca.P256},
	} {
		t.Run(name, func(t *testing.T) {
			sc := newScene(t, o)
			d := sc.d
			if err := d.ep.Initiate("clinic", "net"); err != nil {
				t.Fatal(err)
			}
			d.wait("the connection", func() bool { return len(d.children) == 1 })
			sc.ss.wait(1, 1)
			// Messages take 150 ms, and swanctl some until its request leaves: what is asked meanwhile
			// crosses it, in each of the exchanges that a rekey takes.
			d.lag.Store(int64(150 * time.Millisecond))
			// agree waits until both ends have one IKE SA and one CHILD SA, the same ones.
			agree := func() {
				t.Helper()
				d.wait("one IKE SA and one CHILD SA", func() bool { return len(d.children) == 1 && len(d.ike) == 1 })
				for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
					s, out := d.ep.Snapshot(), sc.ss.ctl("--list-sas")
					if len(s) == 1 && len(s[0].Children) == 1 && strings.Count(out, "ESTABLISHED, IKEv2") == 1 && strings.Count(out, "INSTALLED, TUNNEL") == 1 &&
						strings.Contains(out, fmt.Sprintf("%08x", s[0].Children[0].SPIIn)) && strings.Contains(out, fmt.Sprintf("%08x", s[0].Children[0].SPIOut)) &&
						strings.Contains(out, fmt.Sprintf("%016x", s[0].SPIi)) {
						return
					}
					if time.Now().After(end) {
						t.Fatalf("we have %+v, strongSwan has\n%s", s, out)
					}
				}
			}
			rekeys := 0
			// On a machine with other things to do nothing may cross at first.
			for i := 0; i < 5 || i < 20 && sc.ss.said("collision") == 0; i++ {
				for _, what := range []string{"child", "ike"} {
					ikeSA, child := d.only()
					var wg sync.WaitGroup
					wg.Go(func() {
						if what == "child" {
							_, _ = sc.ss.try("--rekey", "--child", "net")
						} else {
							_, _ = sc.ss.try("--rekey", "--ike", "dual")
						}
					})
					time.Sleep(time.Duration(30*(i%5)) * time.Millisecond)
					if what == "child" {
						_ = d.ep.RekeyChild(child.ID)
					} else {
						_ = d.ep.RekeyIKE(ikeSA.ID)
					}
					wg.Wait()
					time.Sleep(2 * time.Second) // seven times as long as an exchange takes
					agree()
					if s := d.ep.Snapshot()[0]; s.SPIi != ikeSA.SPIi || s.Children[0].ID != child.ID {
						rekeys++
					}
				}
			}
			if rekeys < 3 {
				t.Errorf("%d of 10 rekeys came through", rekeys)
			}
			n := sc.ss.said("collision")
			if n == 0 {
				t.Error("nothing crossed")
			}
			t.Logf("strongSwan saw %d collisions of rekeys, and said TEMPORARY_FAILURE %d times", n, sc.ss.said("N(TEMP_FAIL)"))
			if len(d.failed) > 0 {
				t.Errorf("failed: %v", d.failed)
			}
		})
	}
}
