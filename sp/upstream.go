package sp

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"wardgate/internal/certs"
	"wardgate/policy"
	"wardgate/sp/issue"
	"wardgate/sp/registry"
)

const requestFile = "request.pem"

// CAOptions say how the next CA of a service is made.
type CAOptions struct {
	InFile bool // keys in files also where there is a token
	Now    bool // it issues at once, and not after [services] publish_before
}

func (c *Centre) maker() *caMaker {
	return &caMaker{dir: c.cfg.Services.Dir, token: c.token, now: c.now(), rand: c.rand}
}

// begins is when the next CA issues; zero: at once.
func (c *Centre) begins(o CAOptions) time.Time {
	if o.Now || c.cfg.Services.PublishBefore == 0 {
		return time.Time{}
	}
	return c.now().Add(time.Duration(c.cfg.Services.PublishBefore)).Truncate(time.Second)
}

// withCA finds a service that has CAs.
func withCA(r *registry.Registry, name string) (*registry.Service, error) {
	s := r.Service(name)
	switch {
	case s == nil:
		return nil, fmt.Errorf("service: expected one of the registry, came %s; see: wardgate-sp service list", certs.Quote(name))
	case s.Auth == policy.AuthPSK:
		return nil, fmt.Errorf("service %s: expected one that authenticates by certificate, came one with a pre-shared key, which needs no CA", s.Name)
	}
	return s, nil
}

// MakeCA makes a service's next CA, with a root of its own, and returns its folder. It can be repeated
// when it was cut short: ErrUnfinished says what else is under way. Running instances take the CA up
// within a minute; it issues when its time has come.
func (c *Centre) MakeCA(ctx context.Context, r *registry.Registry, name string, o CAOptions) (string, error) {
	s, err := withCA(r, name)
	if err != nil {
		return "", err
	}
	return c.maker().make(ctx, s.Name, s.Domain, c.token.configured() && !o.InFile, c.begins(o))
}

// RequestCA makes the key of a service's next CA and what an upstream issuer is asked for (PKCS #10,
// PEM). Asked again before the answer is installed, it returns the same request.
func (c *Centre) RequestCA(ctx context.Context, r *registry.Registry, name string, o CAOptions) (request []byte, folder string, err error) {
	s, err := withCA(r, name)
	if err != nil {
		return nil, "", err
	}
	m := c.maker()
	if err := checkService(s.Name, s.Domain); err != nil {
		return nil, "", err
	}
	folder, number, err := m.pending(s.Name)
	if err != nil {
		return nil, "", err
	}
	path := filepath.Join(folder, requestFile)
	if request, err = os.ReadFile(path); !errors.Is(err, fs.ErrNotExist) {
		return request, folder, err
	}
	onToken := c.token.configured() && !o.InFile
	begun, err := exists(folder)
	if err != nil {
		return nil, "", err
	}
	root, err := exists(filepath.Join(folder, "root.uri"))
	switch {
	case err != nil:
		return nil, "", err
	case root:
		return nil, "", fmt.Errorf("%w: %s is a CA with a root of its own; go on with: wardgate-sp service ca %s, or give it up with --discard", ErrUnfinished, folder, s.Name)
	case begun && !onToken:
		return nil, "", fmt.Errorf("%w: %s names a key on the token; go on with it, or give it up with --discard", ErrUnfinished, folder)
	}
	if !onToken {
		return m.requestInFile(s.Name, folder)
	}
	if !begun {
		if err := m.noteKeys(folder, s.Name, number, "ca"); err != nil {
			return nil, "", err
		}
	}
	keys, err := m.named(ctx, folder, "ca")
	if err != nil {
		return nil, "", err
	}
	der, err := issue.CARequest(m.rand, m.org, s.Name, keys[0])
	if err != nil {
		return nil, "", err
	}
	request = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	return request, folder, replaceFile(path, request)
}

func (m *caMaker) requestInFile(service, folder string) ([]byte, string, error) {
	key, err := m.softwareKey()
	if err != nil {
		return nil, "", err
	}
	der, err := issue.CARequest(m.rand, m.org, service, key)
	if err != nil {
		return nil, "", err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, "", err
	}
	request := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	return request, folder, note(folder, map[string][]byte{
		"ca.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), requestFile: request,
	})
}

// InstallCA puts an upstream issuer's answer to use: the CA's certificate and those between it and the
// root, in any order. anchors are roots that are known from elsewhere; those that the service has
// already count too, and a root that only the answer brings does not. list is the root's revocation
// list, or nil. It returns the CA's folder, also when that was done before.
func (c *Centre) InstallCA(r *registry.Registry, name string, given, anchors []*x509.Certificate, list *x509.RevocationList, o CAOptions) (string, error) {
	s, err := withCA(r, name)
	if err != nil {
		return "", err
	}
	m := c.maker()
	if folder, ok := m.installed(s.Name, given); ok {
		return folder, nil
	}
	pending, number, err := m.pending(s.Name)
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(pending, requestFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("service %s: expected a request that waits for its answer (%s), came none; make it with: wardgate-sp service ca %s --csr FILE", s.Name, pending, s.Name)
	}
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return "", fmt.Errorf("%s: expected a request in PEM, came something else; give it up with --discard", filepath.Join(pending, requestFile))
	}
	csr, err := certs.ParseCSR(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Join(pending, requestFile), err)
	}
	key, err := issue.FindKey(pending, "ca", c.token.caKey, csr.PublicKey)
	if err != nil {
		return "", fmt.Errorf("%s: %w", pending, err)
	}
	before, err := m.roots(s.Name)
	if err != nil {
		return "", err
	}
	ca, err := issue.FromUpstream(given, append(before, anchors...), key, m.now)
	if err != nil {
		return "", err
	}
	if list != nil {
		if err := ca.AddRootCRL(list); err != nil {
			return "", err
		}
	}
	if number > 1 {
		ca.From = c.begins(o)
	}
	return m.finish(ca, s.Name, s.Domain, number, pending)
}

// CAFiles are an upstream issuer's files.
type CAFiles struct {
	Answer  string // PEM: the CA's certificate and those between it and the root
	Anchors string // PEM: roots that were agreed upon; may be empty
	List    string // PEM or DER: the root's revocation list; may be empty
}

// maxAnswer bounds what is read of one of them, in octets.
const maxAnswer = 1 << 20

// InstallCAFiles is InstallCA for files.
func (c *Centre) InstallCAFiles(r *registry.Registry, name string, files CAFiles, o CAOptions) (string, error) {
	read := func(path string) ([]byte, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxAnswer+1))
		if err == nil && len(b) > maxAnswer {
			err = fmt.Errorf("%s: expected at most %d octets, came more", path, maxAnswer)
		}
		return b, err
	}
	list := func(path string) ([]*x509.Certificate, error) {
		if path == "" {
			return nil, nil
		}
		b, err := read(path)
		if err != nil {
			return nil, err
		}
		out, err := certs.ParseCertificates(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return out, nil
	}
	given, err := list(files.Answer)
	if err != nil {
		return "", err
	}
	anchors, err := list(files.Anchors)
	if err != nil {
		return "", err
	}
	var revoked *x509.RevocationList
	if files.List != "" {
		b, err := read(files.List)
		if err != nil {
			return "", err
		}
		all, err := certs.ParseCRLs(b)
		if err != nil {
			return "", fmt.Errorf("%s: %w", files.List, err)
		}
		revoked = all[0]
	}
	return c.InstallCA(r, name, given, anchors, revoked, o)
}

// installed finds the CA that an answer was installed as.
func (m *caMaker) installed(service string, given []*x509.Certificate) (string, bool) {
	numbers, err := generations(m.own(service))
	if err != nil {
		return "", false
	}
	for _, n := range numbers {
		folder := filepath.Join(m.own(service), strconv.Itoa(n))
		have, err := readCertificates(filepath.Join(folder, "ca.pem"))
		for i := range given {
			if err == nil && have[0].Equal(given[i]) {
				return folder, true
			}
		}
	}
	return "", false
}

// roots are those of the CAs that a service has.
func (m *caMaker) roots(service string) ([]*x509.Certificate, error) {
	numbers, err := generations(m.own(service))
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for _, n := range numbers {
		list, err := readCertificates(filepath.Join(m.own(service), strconv.Itoa(n), "root.pem"))
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

// DiscardCA gives up what RequestCA or MakeCA began, keys on the token included, and returns its folder;
// "" when there was nothing.
func (c *Centre) DiscardCA(ctx context.Context, r *registry.Registry, name string) (string, error) {
	s, err := withCA(r, name)
	if err != nil {
		return "", err
	}
	m := c.maker()
	folder, _, err := m.pending(s.Name)
	if err != nil {
		return "", err
	}
	if is, err := exists(folder); err != nil || !is {
		return "", err
	}
	for _, w := range []string{"root", "ca"} {
		line, err := os.ReadFile(filepath.Join(folder, w+".uri"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if err := c.token.removeNamed(ctx, string(line)); err != nil {
			return "", fmt.Errorf("%s: %w", filepath.Join(folder, w+".uri"), err)
		}
	}
	return folder, os.RemoveAll(folder)
}
