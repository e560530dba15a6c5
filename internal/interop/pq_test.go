package interop

import (
	"strings"
	"testing"

	"wardgate/internal/labca"
)

// hybrids are what a strongSwan with ML-KEM is tried with: additional key exchanges in
// IKE_INTERMEDIATE and, in every rekey, IKE_FOLLOWUP_KE. The keys of ML-KEM do not fit into one
// datagram, so each of these exchanges is fragmented by both ends.
var hybrids = []sceneOptions{
	{six: true, ike: "aes256gcm16-prfsha384-x25519-ke1_mlkem768", esp: "aes256gcm16-x25519-ke1_mlkem768", key: labca.P384},
	{six: true, ike: "aes256gcm16-prfsha384-ecp384-ke1_mlkem1024", esp: "aes256gcm16-ecp384-ke1_mlkem1024", key: labca.RSA2048},
	{six: true, ike: "aes256-sha256-prfsha256-x25519-ke1_mlkem768-ke2_ecp256", esp: "aes256-sha256-x25519-ke1_mlkem768-ke3_ecp384", key: labca.Ed25519},
	{six: true, ike: "chacha20poly1305-prfsha256-x25519-ke2_mlkem768", esp: "chacha20poly1305-mlkem768", key: labca.P256},
	{six: true, ike: "aes256gcm16-prfsha384-x25519-ke1_mlkem768", esp: "aes256gcm16-x25519", psk: true},
}

func (sc *scene) suite(t *testing.T, want string) {
	t.Helper()
	if i, _ := sc.d.only(); i.Suite != want {
		t.Errorf("IKE SA with %s, want %s", i.Suite, want)
	}
}

func TestStrongSwan6Responder(t *testing.T) { testHybrids(t, true) }

func TestStrongSwan6Initiator(t *testing.T) { testHybrids(t, false) }

func testHybrids(t *testing.T, weInitiate bool) {
	t.Helper()
	for _, o := range hybrids {
		t.Run(o.name(), func(t *testing.T) {
			sc := newScene(t, o)
			sc.connect(t, weInitiate)
			sc.suite(t, o.ike)
			sc.life(t, weInitiate)
			// Each additional key exchange of the IKE SA is one IKE_INTERMEDIATE at the set-up, and one
			// IKE_FOLLOWUP_KE in each of the two rekeys; each of the CHILD SA's is one in each of three. What
			// charon's log names is a request or an answer, whole or as the last fragment.
			perIKE, perChild := strings.Count(o.ike, "-ke"), strings.Count(o.esp, "-ke")
			count := func(exchange string) (n int) {
				for _, how := range []string{"generating ", "parsed "} {
					for _, kind := range []string{" request", " response"} {
						n += sc.ss.messages(how + exchange + kind)
					}
				}
				return n
			}
			if n := count("IKE_INTERMEDIATE"); n != 2*perIKE {
				t.Errorf("%d messages of IKE_INTERMEDIATE, want %d", n, 2*perIKE)
			}
			if n, want := count("IKE_FOLLOWUP_KE"), 2*(2*perIKE+3*perChild); n != want {
				t.Errorf("%d messages of IKE_FOLLOWUP_KE, want %d", n, want)
			}
		})
	}
}

// messages counts the messages in charon's log whose line begins so, fragments left out.
func (s *strongswan) messages(begin string) (n int) {
	for line := range strings.Lines(s.log()) {
		if strings.Contains(line, "[ENC] "+begin) && !strings.Contains(line, "[ EF(") {
			n++
		}
	}
	return n
}

// TestStrongSwanFallback: our default offers additional key exchanges first; a strongSwan that does
// not know them, or does not want them, gets what it knows.
func TestStrongSwanFallback(t *testing.T) {
	classical := "aes256gcm16-prfsha384-x25519"
	base := sceneOptions{
		ike: "aes256gcm16-prfsha384-x25519-ke1_mlkem768 " + classical, esp: "aes256gcm16-x25519-ke1_mlkem768 aes256gcm16-x25519",
		theirIKE: classical, theirESP: "aes256gcm16-x25519", key: labca.P256,
	}
	for name, six := range map[string]bool{"5.9": false, "6": true} {
		for _, weInitiate := range []bool{true, false} {
			t.Run(name+map[bool]string{true: " responds", false: " initiates"}[weInitiate], func(t *testing.T) {
				o := base
				o.six = six
				sc := newScene(t, o)
				if weInitiate {
					if err := sc.d.ep.Initiate("clinic", "net"); err != nil {
						t.Fatal(err)
					}
				} else {
					sc.ss.ctl("--initiate", "--child", "net")
				}
				sc.d.wait("the connection", func() bool { return len(sc.d.children) == 1 })
				sc.suite(t, classical)
				sc.life(t, weInitiate)
			})
		}
	}
}
