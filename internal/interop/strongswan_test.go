package interop

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardgate/internal/labca"
)

const (
	charon  = "/usr/sbin/charon-systemd"
	swanctl = "/usr/sbin/swanctl"
)

// tree6 is where strongswan6.sh puts a strongSwan that has ML-KEM.
const tree6 = "../../build/tools/.strongswan6"

// strongswan is a charon in a namespace, with files of its own.
type strongswan struct {
	t    *testing.T
	root string // the tree it runs in; empty: this machine's own
	dir  string // its files, as it sees them
	load string // what swanctl said
}

// needs6 skips the test, or fails it in CI, unless a strongSwan with ML-KEM is there.
func needs6(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs(tree6)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root + "/.complete"); err == nil {
		return root
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("missing: a strongSwan with ML-KEM; run internal/interop/strongswan6.sh")
	}
	t.Skip("missing: a strongSwan with ML-KEM; run internal/interop/strongswan6.sh")
	return ""
}

// command runs a program of strongSwan's.
func (s *strongswan) command(env []string, args ...string) *exec.Cmd {
	if s.root != "" {
		args = append([]string{"chroot", s.root}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

// startStrongSwan starts charon in the far namespace. Nothing is read from /etc: the plugins are
// listed. ESP is kernel-libipsec, in user space, which always claims a NAT. settings are more of charon's.
func startStrongSwan(t *testing.T, w *wire, root, settings string) *strongswan {
	t.Helper()
	// Not t.TempDir: with the test's name in it the socket's path may become too long.
	s := &strongswan{t: t, root: root, dir: filepath.Join(os.TempDir(), w.theirs)}
	if root != "" {
		s.dir = "/run/" + w.theirs
	}
	if err := os.MkdirAll(root+s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root + s.dir) })
	for _, d := range []string{"x509", "x509ca", "x509ocsp", "x509aa", "x509ac", "x509crl", "pubkey", "private", "rsa", "ecdsa", "bliss", "pkcs8", "pkcs12"} {
		if err := os.Mkdir(filepath.Join(s.root+s.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s.write("strongswan.conf", fmt.Sprintf(`charon-systemd {
  load = random nonce pem pkcs1 pkcs8 x509 pubkey constraints revocation openssl hmac kdf sha2 sha1 curve25519 gcm chapoly drbg curl kernel-libipsec kernel-netlink socket-default vici
  retransmit_timeout = 1.0
  retransmit_tries = 4
  fragment_size = 1280
  %[2]s
  filelog {
    main {
      path = %[1]s/charon.log
      default = 1
      flush_line = yes
      time_format = %%H:%%M:%%S
      time_add_ms = yes
    }
  }
  plugins {
    vici {
      socket = unix://%[1]s/vici.sock
    }
  }
}
swanctl {
  load = pem pkcs1 pkcs8 x509 pubkey openssl random nonce
}
`, s.dir, settings))
	cmd := s.command([]string{"STRONGSWAN_CONF=" + s.dir + "/strongswan.conf"}, charon)
	cmd.Args = append([]string{"nsenter", "--net=/run/netns/" + w.theirs}, cmd.Args...)
	cmd.Path = must(exec.LookPath("nsenter"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Asked to end, it takes a second when it had initiated; there is nothing that it could tidy up.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(s.root+s.dir, "charon.log"))
			t.Logf("swanctl said:\n%s\ncharon said:\n%s", s.load, log)
		}
	})
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := s.try("--version", "--daemon"); err == nil {
			return s
		}
		if time.Now().After(end) {
			t.Fatal("charon did not come up within 30 s")
		}
	}
}

func (s *strongswan) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.root+s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *strongswan) try(args ...string) (string, error) {
	env := []string{"STRONGSWAN_CONF=" + s.dir + "/strongswan.conf", "SWANCTL_DIR=" + s.dir}
	args = append(append([]string{swanctl}, args...), "--uri", "unix://"+s.dir+"/vici.sock")
	out, err := s.command(env, args...).CombinedOutput()
	return string(out), err
}

// ctl runs swanctl, which must succeed.
func (s *strongswan) ctl(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.t.Fatalf("swanctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// ca gives strongSwan the certificates of an authority.
func (s *strongswan) ca(name string, a *labca.Authority) {
	s.t.Helper()
	s.cert("x509ca/"+name+".pem", a.Anchor())
	for i, c := range a.Intermediates() {
		s.cert(fmt.Sprintf("x509ca/%s-%d.pem", name, i), c)
	}
}

func (s *strongswan) cert(path string, c *x509.Certificate) {
	s.t.Helper()
	s.write(path, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})))
}

// own gives strongSwan a credential of its own.
func (s *strongswan) own(name string, c *credential) {
	s.t.Helper()
	s.cert("x509/"+name+".pem", c.leaf)
	key, err := labca.MarshalKey(c.key)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write("private/"+name+".pem", string(key))
}

// configure loads swanctl.conf.
func (s *strongswan) configure(conf string) {
	s.t.Helper()
	s.write("swanctl.conf", conf)
	s.load = s.ctl("--load-all", "--file", s.dir+"/swanctl.conf")
}

// counts tells the number of installed CHILD SAs, and IKE SAs that are established.
func (s *strongswan) counts() (ikes, children int) {
	out := s.ctl("--list-sas")
	return strings.Count(out, "ESTABLISHED, IKEv2"), strings.Count(out, "INSTALLED, TUNNEL")
}

// wait polls until strongSwan has so many SAs.
func (s *strongswan) wait(ikes, children int) {
	s.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		i, c := s.counts()
		if i == ikes && c == children {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("strongSwan has %d IKE SAs and %d CHILD SAs, want %d and %d\n%s", i, c, ikes, children, s.ctl("--list-sas"))
		}
	}
}
