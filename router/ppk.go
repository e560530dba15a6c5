package router

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"

	"wardgate/audit"
	"wardgate/ike"
	"wardgate/policy"
	"wardgate/router/control"
)

// Postquantum preshared keys (RFC 8784). The policy names them; the keys themselves never travel with
// it, because whoever records the policy today and breaks its transport later would have them. They are
// brought to the devices by hand, and lie in files of their own that only the daemon's user reads.
const (
	ppkDir     = "ppk" // in the state directory; a file for each key, by its ID
	maxPPKs    = 4096
	minPPKSize = 32 // octets; RFC 8784, section 6
	maxPPKSize = 1024
)

// ppkStore keeps them.
type ppkStore struct{ dir string }

func (s ppkStore) file(id string) string { return filepath.Join(s.dir, id) }

// get reads a key; fs.ErrNotExist: there is none of that ID.
func (s ppkStore) get(id string) (secret []byte, added time.Time, err error) {
	f, err := os.Open(s.file(id))
	if err != nil {
		return nil, added, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, added, err
	}
	if perm := st.Mode().Perm(); !st.Mode().IsRegular() || perm&0o077 != 0 {
		return nil, added, fmt.Errorf("%s: expected a file of mode 0600, came %v: others may have read it; make a new key", f.Name(), st.Mode())
	}
	if st.Size() > 2*maxPPKSize {
		return nil, added, fmt.Errorf("%s: expected at most %d octets, came %d", f.Name(), 2*maxPPKSize, st.Size())
	}
	text := make([]byte, st.Size())
	defer clear(text)
	n, err := f.Read(text)
	if err != nil {
		return nil, added, fmt.Errorf("%s: %w", f.Name(), err)
	}
	if secret, err = decodePPK(text[:n]); err != nil {
		return nil, added, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return secret, st.ModTime(), nil
}

// decodePPK reads a key in base64. The error does not repeat it.
func decodePPK(text []byte) ([]byte, error) {
	text = bytes.TrimSpace(text)
	secret := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Strict().Decode(secret, text)
	switch {
	case err != nil:
		clear(secret)
		return nil, errors.New("expected base64 (standard alphabet, padded), came something else (not shown, it is a secret)")
	case n < minPPKSize || n > maxPPKSize:
		clear(secret)
		return nil, fmt.Errorf("expected base64 of %d to %d octets, came %d", minPPKSize, maxPPKSize, n)
	case bytes.Count(secret[:n], secret[:1]) == n:
		clear(secret)
		return nil, errors.New("expected random octets, came one octet again and again")
	}
	return secret[:n], nil
}

func (s ppkStore) put(id string, secret []byte) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	text := append(base64.StdEncoding.AppendEncode(nil, secret), '\n')
	defer clear(text)
	return writeFile(s.file(id), text, 0o600)
}

// ids lists the keys that are there.
func (s ppkStore) ids() ([]string, error) {
	list, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []string
	for _, e := range list {
		if e.Type().IsRegular() && e.Name()[0] != '.' {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// checkValue is the same for equal keys, and says nothing about a random one: for comparing by telephone.
func checkValue(secret []byte) string {
	m := hmac.New(sha256.New, secret)
	m.Write([]byte("wardgate: check value of a postquantum preshared key"))
	v := m.Sum(nil)
	return fmt.Sprintf("%x-%x", v[:2], v[2:4])
}

// usePPK adds the key that the policy names to what IKE needs to know. Without a key that is required
// there is no connection.
func (r *Router) usePPK(p *ike.PeerConfig, info *policy.ConnectionInfo) error {
	if info.PPK == policy.PPKOff {
		return nil
	}
	required := info.PPK == policy.PPKRequired
	secret, _, err := r.ppks.get(info.PPKID)
	switch {
	case err == nil:
		p.RemoteAuth[0].PPKs = []ike.PPK{{ID: info.PPKID, Secret: secret}}
		p.RemoteAuth[0].RequirePPK = required
	case !required:
		if !errors.Is(err, fs.ErrNotExist) {
			r.log.Warn("an optional postquantum preshared key cannot be used", zap.String("connection", info.Name), zap.String("ppk_id", info.PPKID), zap.Error(err))
		}
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the policy requires the postquantum preshared key %q, which this device does not have; bring it by hand, and store it with: wardgate ppk add %s", info.PPKID, info.PPKID)
	default:
		return fmt.Errorf("the policy requires the postquantum preshared key %q, which cannot be used: %w", info.PPKID, err)
	}
	return nil
}

// PPKs implements control.Backend.
func (r *Router) PPKs(context.Context) ([]control.PPK, error) {
	ids, err := r.ppks.ids()
	if err != nil {
		return nil, err
	}
	by := make(map[string]*control.PPK)
	for _, id := range ids {
		by[id] = &control.PPK{ID: id}
	}
	if t := r.table(); t != nil {
		for i := range t.Connections() {
			if id := t.Connections()[i].PPKID; id != "" && by[id] == nil {
				by[id] = &control.PPK{ID: id}
			}
		}
	}
	out := make([]control.PPK, 0, len(by))
	for id := range by {
		out = append(out, r.ppk(id))
	}
	slices.SortFunc(out, func(a, b control.PPK) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// ppk says what is known of one key.
func (r *Router) ppk(id string) control.PPK {
	k := control.PPK{ID: id}
	secret, added, err := r.ppks.get(id)
	switch {
	case err == nil:
		k.Present, k.Check, k.Added = true, checkValue(secret), added
		clear(secret)
	case !errors.Is(err, fs.ErrNotExist):
		k.Error = &control.Error{Kind: control.KindRefused, Code: "ppk-unusable", Title: "The key cannot be used", Detail: err.Error()}
	}
	if t := r.table(); t != nil {
		for i := range t.Connections() {
			if c := &t.Connections()[i]; c.PPKID == id {
				k.Connections = append(k.Connections, c.Name)
				k.Required = k.Required || c.PPK == policy.PPKRequired
			}
		}
	}
	return k
}

// PPKAdd implements control.Backend.
func (r *Router) PPKAdd(ctx context.Context, id string, text []byte, replace bool) (*control.PPK, error) {
	secret, err := decodePPK(text)
	if err != nil {
		return nil, &control.Error{Kind: control.KindInvalid, Code: "ppk", Title: "That is no key", Detail: err.Error(), Hint: "make one with: openssl rand -base64 32"}
	}
	defer clear(secret)
	ids, err := r.ppks.ids()
	there := slices.Contains(ids, id)
	switch {
	case err != nil:
		return nil, err
	case there && !replace:
		return nil, &control.Error{Kind: control.KindRefused, Code: "ppk-exists", Title: "There is a key " + id + " already", Hint: "compare their check values: wardgate ppk list; or replace it: --replace"}
	case !there && len(ids) >= maxPPKs:
		return nil, &control.Error{Kind: control.KindRefused, Code: "ppk-many", Title: "There are too many keys", Detail: fmt.Sprintf("expected at most %d", maxPPKs), Hint: "remove those that no connection uses"}
	}
	if err := r.ppks.put(id, secret); err != nil {
		return nil, err
	}
	k := r.ppk(id)
	r.record(audit.Record{
		Event: audit.EventOperator, Who: operator(ctx), What: "ppk add " + id, Result: audit.ResultInfo,
		Detail: map[string]string{"check": k.Check, "replaced": fmt.Sprint(there)},
	})
	r.setPeers()
	return &k, nil
}

// PPKRemove implements control.Backend.
func (r *Router) PPKRemove(ctx context.Context, id string) (*control.PPK, error) {
	err := os.Remove(r.ppks.file(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &control.Error{Kind: control.KindNotFound, Code: "no-such-ppk", Title: "There is no key " + id, Hint: "see the keys with: wardgate ppk list"}
	}
	if err != nil {
		return nil, err
	}
	r.record(audit.Record{Event: audit.EventOperator, Who: operator(ctx), What: "ppk remove " + id, Result: audit.ResultInfo})
	r.setPeers()
	k := r.ppk(id)
	return &k, nil
}
