package sp

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"wardgate/internal/certs"
	"wardgate/sp/issue"
	"wardgate/sp/registry"
)

// A service's folder has one folder for each of its CAs, by number, and while the next one is made,
// NUMBER.new beside them:
//
//	services/NAME/1/       in use: package issue has what is in it
//	services/NAME/2.new/   ca.key or ca.uri: the key of the CA to be
//	                       root.uri: of its root, where that is ours and on the token
//	                       request.pem: what the upstream issuer is asked for
//
// What names a key on the token is written before the key is made. So whoever was cut short leaves
// nothing that is not named somewhere, and the same command goes on where it ended.

const pendingSuffix = ".new"

// caMaker makes the CAs of services.
type caMaker struct {
	dir   string // [services] dir
	org   string // in subjects; may be empty
	token *keyToken
	now   time.Time
	rand  io.Reader
}

func (m *caMaker) own(service string) string { return filepath.Join(m.dir, service) }

func checkService(service, domain string) error {
	if !registry.ValidName(service) {
		return fmt.Errorf("service: expected a name of the registry's form, came %s", certs.Quote(service))
	}
	if !registry.ValidDNSName(domain) {
		return fmt.Errorf("domain of service %s: expected a DNS name of at least two labels, came %s", service, certs.Quote(domain))
	}
	return nil
}

// pending returns the folder of the CA that is being made. A leftover of one that is finished is removed.
func (m *caMaker) pending(service string) (folder string, number int, err error) {
	numbers, err := generations(m.own(service))
	if err != nil {
		return "", 0, err
	}
	last := 0
	if len(numbers) > 0 {
		last = numbers[0]
	}
	if last > 0 {
		if err := os.RemoveAll(filepath.Join(m.own(service), strconv.Itoa(last)+pendingSuffix)); err != nil {
			return "", 0, err
		}
	}
	return filepath.Join(m.own(service), strconv.Itoa(last+1)+pendingSuffix), last + 1, nil
}

// exists reports whether something is there.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// note writes the folder of a CA that is being made, as a whole.
func note(folder string, files map[string][]byte) error {
	if err := os.MkdirAll(filepath.Dir(folder), 0o700); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(folder), ".new-*") // mode 0700
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for name, data := range files {
		if err := writeSecret(filepath.Join(tmp, name), data); err != nil {
			return err
		}
	}
	return os.Rename(tmp, folder)
}

func writeSecret(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// label names a key on the token: for people what it is for, and a number so that no other key has it.
func (m *caMaker) label(service string, number int, what string) (string, error) {
	var n [4]byte
	if _, err := io.ReadFull(m.rand, n[:]); err != nil {
		return "", err
	}
	// CKA_LABEL is 64 octets here; names of services may be 63.
	return fmt.Sprintf("%s-%d-%s-%s", service[:min(len(service), 40)], number, what, hex.EncodeToString(n[:])), nil
}

// named makes the keys that the references in a folder name, or finds them where that was done before.
func (m *caMaker) named(ctx context.Context, folder string, what ...string) ([]crypto.Signer, error) {
	var out []crypto.Signer
	for _, w := range what {
		line, err := os.ReadFile(filepath.Join(folder, w+".uri"))
		if err != nil {
			return nil, err
		}
		r, err := parseReference(strings.TrimSpace(string(line)))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(folder, w+".uri"), err)
		}
		k, err := m.token.generate(ctx, r.object, true)
		if err != nil {
			return nil, err
		}
		out = append(out, k)
	}
	return out, nil
}

// noteKeys writes what the keys on the token will be named by.
func (m *caMaker) noteKeys(folder, service string, number int, what ...string) error {
	files := map[string][]byte{}
	for _, w := range what {
		label, err := m.label(service, number, w)
		if err != nil {
			return err
		}
		r := reference{token: m.token.cfg.Label, object: label}
		files[w+".uri"] = []byte(r.String() + "\n")
	}
	return note(folder, files)
}

// make makes a service's next CA, root and all, cross-signed with the one before where both roots' keys
// are here, and returns its folder. It issues from a time on; the first one does at once.
func (m *caMaker) make(ctx context.Context, service, domain string, onToken bool, from time.Time) (string, error) {
	if err := checkService(service, domain); err != nil {
		return "", err
	}
	folder, number, err := m.pending(service)
	if err != nil {
		return "", err
	}
	asked, err := exists(filepath.Join(folder, requestFile))
	if err != nil {
		return "", err
	}
	begun, err := exists(folder)
	switch {
	case err != nil:
		return "", err
	case asked:
		return "", fmt.Errorf("%w: %s has what an upstream issuer was asked for; install its answer, or give it up with --discard", ErrUnfinished, folder)
	case begun && !onToken:
		return "", fmt.Errorf("%w: %s names keys on the token; go on with them, or give them up with --discard", ErrUnfinished, folder)
	}
	o := issue.CAOptions{Service: service, Organization: m.org, Domain: domain, NotBefore: m.now.Add(-time.Hour), Rand: m.rand}
	if onToken {
		if !begun {
			if err := m.noteKeys(folder, service, number, "root", "ca"); err != nil {
				return "", err
			}
		}
		keys, err := m.named(ctx, folder, "root", "ca")
		if err != nil {
			return "", err
		}
		o.RootKey, o.Key = keys[0], keys[1]
	}
	ca, err := issue.NewCA(o)
	if err != nil {
		return "", err
	}
	if number > 1 {
		if ca, err = m.cross(service, number-1, ca); err != nil {
			return "", err
		}
		ca.From = from
	}
	return m.finish(ca, service, domain, number, folder)
}

// cross signs old and new CA by one another where that can be done. Where it cannot, peers know the new
// root by their policies, which have it before the new CA issues.
func (m *caMaker) cross(service string, before int, ca *issue.CA) (*issue.CA, error) {
	old, err := issue.OpenCA(filepath.Join(m.own(service), strconv.Itoa(before)), m.token.caKey, m.now)
	if errors.Is(err, issue.ErrCAEnded) {
		return ca, nil
	}
	if err != nil {
		return nil, err
	}
	crossed, err := issue.CrossSign(m.rand, old, ca, m.now)
	if errors.Is(err, issue.ErrRootOffline) {
		return ca, nil
	}
	return crossed, err
}

// finish judges a CA, puts it into its folder and forgets that it was being made.
func (m *caMaker) finish(ca *issue.CA, service, domain string, number int, pending string) (string, error) {
	if err := ca.Check(m.now); err != nil {
		return "", err
	}
	if err := ca.TryOut(m.rand, domain, m.now); err != nil {
		return "", err
	}
	if err := os.MkdirAll(m.own(service), 0o700); err != nil {
		return "", err
	}
	out := filepath.Join(m.own(service), strconv.Itoa(number))
	if err := ca.Save(out); err != nil {
		return "", err
	}
	return out, os.RemoveAll(pending)
}

func (m *caMaker) softwareKey() (crypto.Signer, error) {
	return ecdsa.GenerateKey(elliptic.P256(), m.rand)
}
