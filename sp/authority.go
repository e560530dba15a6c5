package sp

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"wardgate/internal/certs"
	"wardgate/policy"
	"wardgate/sp/compile"
	"wardgate/sp/est"
	"wardgate/sp/issue"
	"wardgate/sp/registry"
	"wardgate/sp/store"
)

// authorities are the services' CAs and keys, as they lie in the folder [services] dir.
type authorities struct {
	cfg      *Config
	token    *keyToken
	recorder issue.Recorder
	rand     io.Reader

	loading sync.Mutex // one load at a time

	mu       sync.RWMutex // guards what follows
	services map[string]*authority
	devices  est.Trust
	trusted  uint64         // generation of devices: from 1, another one when they are judged by other things
	loaded   store.Revision // of the registry, that the services are of
	epoch    string         // changes when policies are to be made anew because of what is trusted
}

// authority is one service's.
type authority struct {
	of      string         // what it was loaded from: another text means to load again
	service *issue.Service // nil with a pre-shared key
	psk     policy.Secret
}

func newAuthorities(cfg *Config, token *keyToken, r issue.Recorder, rand io.Reader) *authorities {
	return &authorities{cfg: cfg, token: token, recorder: r, rand: rand, services: map[string]*authority{}}
}

// generations lists the numbers of a service's CAs, the highest first.
func generations(dir string) ([]int, error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []int
	for _, e := range list {
		if n, err := strconv.Atoi(e.Name()); err == nil && n > 0 && e.IsDir() && strconv.Itoa(n) == e.Name() {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b int) int { return cmp.Compare(b, a) })
	return out, nil
}

// load reads what is new: CAs of services that the registry has, trust in device certificates. What
// cannot be read is told in the error, and the rest is loaded all the same.
func (a *authorities) load(r *registry.Registry, rev store.Revision, now time.Time) error {
	a.loading.Lock()
	defer a.loading.Unlock()
	trust, err := a.deviceTrust()
	all := []error{err}
	next := map[string]*authority{}
	for i := range r.Services() {
		s := &r.Services()[i]
		was := a.get(s.Name)
		got, err := a.one(s, was, now)
		if err != nil {
			all = append(all, fmt.Errorf("service %s: %w", s.Name, err))
			got = was // what is in use stays in use
		}
		if got != nil {
			next[s.Name] = got
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.services, a.loaded = next, rev
	if trust != nil && (a.trusted == 0 || !sameTrust(trust, &a.devices)) {
		a.devices = *trust
		a.trusted++
	}
	h := sha256.New()
	for _, c := range a.devices.Anchors {
		h.Write(c.Raw)
	}
	fmt.Fprint(h, saysOf(a.devices.CRLs))
	for _, name := range slices.Sorted(maps.Keys(next)) {
		fmt.Fprintf(h, "\n%s %s", name, next[name].of)
	}
	a.epoch = hex.EncodeToString(h.Sum(nil))
	return errors.Join(all...)
}

// has reports whether what is in use is of a revision of the registry.
func (a *authorities) has(rev store.Revision) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.loaded == rev
}

// current returns what changes when policies are to be made anew because of what is trusted.
func (a *authorities) current() string {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.epoch
}

// saysOf tells what revocation lists name, but for certificates that were replaced by their own
// device's next: those are no news for others.
func saysOf(lists []*x509.RevocationList) string {
	var b strings.Builder
	for _, l := range lists {
		fmt.Fprintf(&b, "%x:", l.AuthorityKeyId)
		for _, e := range l.RevokedCertificateEntries {
			if e.ReasonCode != int(store.Superseded) {
				fmt.Fprintf(&b, " %x", e.SerialNumber)
			}
		}
	}
	return b.String()
}

func (a *authorities) deviceTrust() (*est.Trust, error) {
	anchors, err1 := readAll(a.cfg.Devices.Anchors)
	between, err2 := readAll(a.cfg.Devices.Intermediates)
	crls, err3 := readCRLs(a.cfg.Devices.CRLs)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("trust in device certificates: %w", err)
	}
	return &est.Trust{Anchors: anchors, Intermediates: between, CRLs: crls, RequireCRL: a.cfg.Devices.RequireCRL}, nil
}

// one loads a service's CAs or key; nil: it has none (yet).
func (a *authorities) one(s *registry.Service, was *authority, now time.Time) (*authority, error) {
	dir := filepath.Join(a.cfg.Services.Dir, s.Name)
	if s.Auth == policy.AuthPSK {
		return loadPSK(filepath.Join(dir, "psk"))
	}
	numbers, err := generations(dir)
	if err != nil || len(numbers) == 0 {
		return nil, err
	}
	of := fmt.Sprint(s.Domain, numbers, rootLists(dir, numbers))
	if was != nil && was.of == of {
		return was, nil
	}
	var cas []*issue.CA
	for i, n := range numbers {
		ca, err := issue.OpenCA(filepath.Join(dir, strconv.Itoa(n)), a.token.caKey, now)
		switch {
		case err == nil && len(cas) < issue.MaxGenerations:
			cas = append(cas, ca)
		case i > 0 && (err == nil || errors.Is(err, issue.ErrCAEnded)):
			// An older one that has ended is not needed any more: its certificates have ended, too.
		default:
			return nil, err
		}
	}
	cfg := a.cfg.Services.certificates()
	cfg.Name, cfg.Domain, cfg.CRLLife, cfg.Rand, cfg.Recorder = s.Name, s.Domain, 2*time.Duration(a.cfg.Policy.Life), a.rand, a.recorder
	if u := strings.TrimSuffix(a.cfg.Server.StatusURL, "/"); u != "" {
		cfg.CRLURL, cfg.OCSPURL = u+"/crl/"+s.Name+"/{ca}.crl", u+"/ocsp"
	}
	svc, err := issue.NewService(cfg, now, cas...)
	if err != nil {
		return nil, err
	}
	return &authority{of: of, service: svc}, nil
}

// minPSK is what docs/policy.md asks of a pre-shared key, in octets.
const minPSK = 32

// rootLists tells the lists that were brought along for roots that are elsewhere: a new one is taken up.
func rootLists(dir string, numbers []int) string {
	var b strings.Builder
	for _, n := range numbers {
		if st, err := os.Stat(filepath.Join(dir, strconv.Itoa(n), "root.crl")); err == nil {
			fmt.Fprintf(&b, " %d:%d:%d", n, st.Size(), st.ModTime().UnixNano())
		}
	}
	return b.String()
}

func loadPSK(path string) (*authority, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: expected a file that only its owner can read, came mode %04o; chmod 600, and make a new key", path, st.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(data)))
	if err != nil || len(key) < minPSK {
		return nil, fmt.Errorf("%s: expected at least %d octets in base64, came something else", path, minPSK)
	}
	defer clear(key)
	return &authority{of: "psk", psk: policy.NewSecret(key)}, nil
}

func (a *authorities) get(service string) *authority {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.services[service]
}

func (a *authorities) trust() est.Trust {
	t, _ := a.trustNow()
	return t
}

// trustNow is by what devices are judged, and its generation.
func (a *authorities) trustNow() (est.Trust, uint64) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.devices, a.trusted
}

// issuing lists the services with CAs.
func (a *authorities) issuing() []*issue.Service {
	a.mu.RLock()
	defer a.mu.RUnlock()
	var out []*issue.Service
	for _, s := range a.services {
		if s.service != nil {
			out = append(out, s.service)
		}
	}
	return out
}

// enrolment is a service as package est asks for it.
func (a *authorities) enrolment(name string) (est.Service, bool) {
	s := a.get(name)
	if s == nil || s.service == nil {
		return est.Service{}, false
	}
	return est.Service{CA: s.service, Plain: slices.Contains(a.cfg.Services.Plain, name)}, true
}

// trusted is what policies are made of, and for each service (and "" for device certificates) what the
// lists say.
type trusted struct {
	compile.Trust
	lists map[string]string
}

// forPolicies makes the current lists of all services.
func (a *authorities) forPolicies(ctx context.Context, now time.Time) (*trusted, error) {
	a.mu.RLock()
	services, devices := a.services, a.devices
	a.mu.RUnlock()
	out := &trusted{Trust: compile.Trust{Services: map[string]compile.ServiceTrust{}}, lists: map[string]string{"": saysOf(devices.CRLs)}}
	for _, c := range devices.Anchors {
		out.DeviceAnchors = append(out.DeviceAnchors, string(certs.EncodePEM(c)))
	}
	for _, l := range devices.CRLs {
		out.DeviceCRLs = append(out.DeviceCRLs, encodeCRL(l))
	}
	for name, s := range services {
		if s.service == nil {
			out.Services[name] = compile.ServiceTrust{PSK: s.psk}
			continue
		}
		var t compile.ServiceTrust
		for _, c := range s.service.Anchors() {
			t.Anchors = append(t.Anchors, string(certs.EncodePEM(c)))
		}
		lists, err := s.service.CRLs(ctx, now)
		if err != nil {
			return nil, fmt.Errorf("revocation lists of %s: %w", name, err)
		}
		for _, l := range lists {
			t.CRLs = append(t.CRLs, encodeCRL(l))
		}
		out.Services[name], out.lists[name] = t, saysOf(lists)
	}
	return out, nil
}

// contentOf is the hash of what a document says: everything but serial number and dates, and of
// revocation lists whom they name. Instances make lists of their own and make them anew as time goes
// on; a device gets a new policy for that only when its policy's time comes.
func (t *trusted) contentOf(p *compile.Policy) (store.Hash, error) {
	doc := *p.Document(0, time.Time{}, time.Time{})
	doc.DeviceCRLs = nil
	doc.Services = slices.Clone(doc.Services)
	for i := range doc.Services {
		doc.Services[i].CRLs = nil
	}
	b, err := json.Marshal(&doc)
	if err != nil {
		return store.Hash{}, err
	}
	h := sha256.New()
	h.Write(b)
	fmt.Fprintf(h, "\n%s", t.lists[""])
	for i := range doc.Services {
		fmt.Fprintf(h, "\n%s %s", doc.Services[i].Name, t.lists[doc.Services[i].Name])
	}
	return store.Hash(h.Sum(nil)), nil
}
