package interop

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wardgate/internal/labca"
)

// log returns what charon has written.
func (s *strongswan) log() string {
	log, err := os.ReadFile(filepath.Join(s.root+s.dir, "charon.log"))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(log)
}

// said tells how often charon wrote a text into its log.
func (s *strongswan) said(text string) int { return strings.Count(s.log(), text) }

// TestStrongSwanSignatures: RSASSA-PSS and Ed25519 in both directions (RFC 7427, RFC 8420), both
// roles, two rounds each.
func TestStrongSwanSignatures(t *testing.T) {
	for _, c := range []struct {
		name        string
		key         labca.KeyType
		auth        string // how strongSwan is to sign
		ours, their string // what charon calls the signatures
	}{
		{"PSS", labca.RSA2048, "rsa/pss-sha256", "RSA_EMSA_PSS_SHA2_256_SALT_32", "RSA_EMSA_PSS_SHA2_256_SALT_32"},
		{"PSS with SHA-384", labca.RSA2048, "rsa/pss-sha384", "RSA_EMSA_PSS_SHA2_256_SALT_32", "RSA_EMSA_PSS_SHA2_384_SALT_48"},
		{"Ed25519", labca.Ed25519, "pubkey", "ED25519", "ED25519"},
	} {
		for _, six := range []bool{false, true} {
			for _, weInitiate := range []bool{true, false} {
				t.Run(c.name+map[bool]string{true: "/6", false: "/5.9"}[six]+map[bool]string{true: "/responds", false: "/initiates"}[weInitiate], func(t *testing.T) {
					o := sceneOptions{six: six, ike: "aes256gcm16-prfsha384-x25519", esp: "aes256gcm16-x25519", key: c.key}
					o.edit = func(conf string) string {
						from, to := strings.Index(conf, " local-1"), strings.Index(conf, " remote-1")
						return conf[:from] + strings.ReplaceAll(conf[from:to], "auth = pubkey", "auth = "+c.auth) + conf[to:]
					}
					sc := newScene(t, o)
					if weInitiate {
						if err := sc.d.ep.Initiate("clinic", "net"); err != nil {
							t.Fatal(err)
						}
					} else {
						sc.ss.ctl("--initiate", "--child", "net")
					}
					sc.d.wait("the connection", func() bool { return len(sc.d.children) == 1 })
					sc.ss.wait(1, 1)
					// charon: authentication of 'ID' with SCHEME successful, and … (myself) with SCHEME.
					if n := sc.ss.said("with " + c.ours + " successful"); n < 2 {
						t.Errorf("strongSwan found %d of our signatures good as %s, want 2", n, c.ours)
					}
					if n := sc.ss.said("(myself) with " + c.their); n != 2 {
						t.Errorf("strongSwan signed %d times as %s, want 2", n, c.their)
					}
				})
			}
		}
	}
}
