package lab

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"time"

	"wardgate/internal/labca"
)

// OpenIKED is an iked in a guest, whose kernel does ESP for it.
type OpenIKED struct {
	g    *Guest
	runs int
}

// OpenIKEDMissing tells what this machine lacks for OpenIKED, or nil.
func OpenIKEDMissing() error {
	if _, err := os.Stat("/usr/sbin/iked"); err != nil {
		return fmt.Errorf("install Debian's openiked: %w", err)
	}
	return nil
}

// OpenIKED prepares the guest for iked: its folder /etc/iked, with a key, the certificate for it, which is
// of the identity id, and the authority's.
func (g *Guest) OpenIKED(ctx context.Context, id string, key crypto.Signer, cert, ca *x509.Certificate) (*OpenIKED, error) {
	if err := g.LoadModules(ctx); err != nil {
		return nil, err
	}
	private, err := labca.MarshalKey(key)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	for name, text := range map[string]string{
		"iked-local.key": string(private), "iked-local.pub": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
		"iked-cert.pem": certPEM(cert), "iked-ca.pem": certPEM(ca),
	} {
		if _, err := g.WriteFile(name, text); err != nil {
			return nil, err
		}
	}
	// /etc/iked is where iked was built to look.
	out, err := g.Run(ctx, fmt.Sprintf(`set -e
mount -t tmpfs -o mode=0755 tmpfs /etc/iked
cd /etc/iked
mkdir -p ca certs crls private pubkeys/fqdn pubkeys/ipv4 pubkeys/ipv6 pubkeys/ufqdn
cp %[1]s/iked-ca.pem ca/ca.crt
cp %[1]s/iked-cert.pem certs/%[2]s.crt
cp %[1]s/iked-local.key private/local.key
cp %[1]s/iked-local.pub local.pub
chmod 0644 ca/* certs/* local.pub # iked reads them after it has given up being root
chmod 0600 private/local.key
`, g.Dir, id))
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	return &OpenIKED{g: g}, nil
}

// Start starts iked with the text of its iked.conf; [OpenIKED.Stop] has to come before another Start.
func (o *OpenIKED) Start(ctx context.Context, conf string) error {
	o.runs++
	file, err := o.g.WriteFile("iked.conf", conf)
	if err != nil {
		return err
	}
	out, err := o.g.Run(ctx, fmt.Sprintf(`set -e
install -m 0600 %s /etc/iked/iked.conf
setsid iked -dvv -f /etc/iked/iked.conf >%s 2>&1 &
echo $! >/run/iked.pid
for i in {1..200}; do ! ikectl show sa >/dev/null 2>&1 || exit 0; kill -0 $(cat /run/iked.pid) || exit 1; sleep 0.05; done
exit 1
`, file, o.log()))
	if err != nil {
		return fmt.Errorf("start iked: %w\n%s\n%s", err, out, o.Log())
	}
	return nil
}

func (o *OpenIKED) log() string { return o.g.path(fmt.Sprintf("iked-%d.log", o.runs)) }

// Log returns what iked has said since it was started.
func (o *OpenIKED) Log() string {
	text, err := os.ReadFile(o.log())
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Ctl runs ikectl and returns what it printed.
func (o *OpenIKED) Ctl(ctx context.Context, args string) (string, error) {
	return o.g.Run(ctx, "ikectl "+args)
}

// Stop ends iked, without a word to its peers, and what it had told the kernel.
func (o *OpenIKED) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, err := o.g.Run(ctx, `kill $(cat /run/iked.pid)
for i in {1..200}; do kill -0 $(cat /run/iked.pid) 2>/dev/null || break; sleep 0.05; done
ip xfrm state flush && ip xfrm policy flush`)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}
