package lab

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"wardgate/internal/labca"
)

// Libreswan is a pluto in a guest, whose kernel does ESP for it.
type Libreswan struct {
	g    *Guest
	seen int // connections that were loaded
}

// libreswanTree is where internal/interop/libreswan.sh unpacks Debian's libreswan, below the checkout.
const libreswanTree = "build/tools/.libreswan"

// LibreswanTree returns the folder of libreswan's files below the root of a checkout.
func LibreswanTree(checkout string) (string, error) {
	tree := filepath.Join(checkout, libreswanTree)
	if _, err := os.Stat(tree + "/.complete"); err != nil {
		return "", fmt.Errorf("there is no libreswan; run internal/interop/libreswan.sh: %w", err)
	}
	// It may lie behind a link, which the guest's mount does not follow.
	return filepath.EvalSymlinks(tree)
}

// In a root that is the machine's with libreswan laid over it.
const (
	libreswanRoot = "chroot /run/libreswan "
	libreswanDir  = libreswanRoot + "/usr/libexec/ipsec/"
	plutoControl  = " --ctlsocket /run/pluto/pluto.ctl "
)

// StartLibreswan starts pluto out of a [LibreswanTree], without connections. secrets is the text of its
// ipsec.secrets.
func (g *Guest) StartLibreswan(ctx context.Context, tree, secrets string) (*Libreswan, error) {
	s := &Libreswan{g: g}
	if err := g.LoadModules(ctx); err != nil {
		return nil, err
	}
	secretsFile, err := g.WriteFile("ipsec.secrets", secrets)
	if err != nil {
		return nil, err
	}
	conf, err := g.WriteFile("setup.conf", "config setup\n    nssdir=/run/nss\n    secretsfile="+secretsFile+"\n    uniqueids=yes\n")
	if err != nil {
		return nil, err
	}
	script := fmt.Sprintf(`set -e
mkdir -p /run/libreswan /run/libreswan-files /run/pluto /run/nss
mount -t hostfs none /run/libreswan-files -o %[1]s
mount -t overlay overlay -o lowerdir=/run/libreswan-files:/ /run/libreswan
for d in proc dev run; do mount --rbind /$d /run/libreswan/$d; done
mount --bind %[2]s /run/libreswan%[2]s
%[3]scertutil -N -d sql:/run/nss --empty-password
setsid %[4]spluto --nofork --config %[5]s --nssdir /run/nss --rundir /run/pluto --secretsfile %[6]s --stderrlog >%[2]s/pluto.log 2>&1 &
for i in {1..200}; do [[ ! -S /run/pluto/pluto.ctl ]] || break; sleep 0.05; done
%[4]swhack%[7]s--rereadsecrets
%[4]swhack%[7]s--listen
`, tree, g.Dir, libreswanRoot, libreswanDir, conf, secretsFile, plutoControl)
	if out, err := g.Run(ctx, script); err != nil {
		return nil, fmt.Errorf("start pluto: %w\n%s\n%s", err, out, s.Log())
	}
	return s, nil
}

// Log returns pluto's log so far.
func (s *Libreswan) Log() string {
	text, err := os.ReadFile(s.g.path("pluto.log"))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Whack gives pluto a command and returns what it said. Commands that set something up return when it
// stands, or has failed.
func (s *Libreswan) Whack(ctx context.Context, args string) (string, error) {
	return s.g.Run(ctx, libreswanDir+"whack"+plutoControl+args)
}

// AddIdentity gives pluto a key and its certificate under a nickname, and trust in the chain's last
// certificate, which is the authority's.
func (s *Libreswan) AddIdentity(ctx context.Context, nickname string, key crypto.Signer, chain ...*x509.Certificate) error {
	pem, err := labca.MarshalKey(key)
	if err != nil {
		return err
	}
	keyFile, err := s.g.WriteFile(nickname+".key", string(pem))
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, c := range chain {
		text.WriteString(certPEM(c))
	}
	certFile, err := s.g.WriteFile(nickname+".pem", text.String())
	if err != nil {
		return err
	}
	rootFile, err := s.g.WriteFile(nickname+"-ca.pem", certPEM(chain[len(chain)-1]))
	if err != nil {
		return err
	}
	// NSS takes keys as PKCS #12 only.
	if out, err := exec.CommandContext(ctx, "openssl", "pkcs12", "-export", "-inkey", keyFile, "-in", certFile,
		"-name", nickname, "-passout", "pass:lab", "-out", s.g.path(nickname+".p12")).CombinedOutput(); err != nil {
		return fmt.Errorf("openssl pkcs12: %w: %s", err, out)
	}
	out, err := s.g.Run(ctx, fmt.Sprintf(`set -e
%[1]scertutil -A -n %[2]s-ca -t CT,, -i %[4]s -d sql:/run/nss
%[1]spk12util -i %[3]s -d sql:/run/nss -W lab -K ''
`, libreswanRoot, nickname, s.g.path(nickname+".p12"), rootFile))
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// Add loads a connection; settings are the lines of its section of ipsec.conf.
func (s *Libreswan) Add(ctx context.Context, name string, settings ...string) error {
	s.seen++
	conf, err := s.g.WriteFile(fmt.Sprintf("ipsec-%d.conf", s.seen), "conn "+name+"\n    "+strings.Join(settings, "\n    ")+"\n")
	if err != nil {
		return err
	}
	if out, err := s.g.Run(ctx, libreswanDir+"addconn --config "+conf+plutoControl+name); err != nil {
		return fmt.Errorf("%w\n%s\n%s", err, out, s.Log())
	}
	return nil
}

// WaitIdle waits until pluto has no SA of a connection's.
func (s *Libreswan) WaitIdle(ctx context.Context, name string, limit time.Duration) error {
	return WaitFor(ctx, "libreswan to have no SA", limit, func() error {
		out, err := s.Whack(ctx, "--showstates")
		if err == nil && strings.Contains(out, `"`+name+`"`) {
			err = errors.New(out)
		}
		return err
	})
}
