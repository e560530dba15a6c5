package sp

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"wardgate/internal/certs"
	"wardgate/pkichip"
	"wardgate/sp/issue"
)

// DefaultChip is where packages put the chip process.
const DefaultChip = "/usr/libexec/wardgate/wardgate-chip"

const (
	tokenTimeout = 8 * time.Second // for one signature, the search for the key included
	tokenRestart = time.Second     // between two tries to start the chip process
)

// Token is the section [token]: the PKCS #11 token of the centre, behind a chip process of its own.
type Token struct {
	Module        string `toml:"module"` // path of the PKCS #11 library; empty: all keys are files
	Label         string `toml:"label"`
	PINFile       string `toml:"pin_file"`       // at most one of the three
	PINCredential string `toml:"pin_credential"` // name of a systemd credential
	PINEnv        string `toml:"pin_env"`        // name of an environment variable
	Chip          string `toml:"chip"`           // path of wardgate-chip; default /usr/libexec/wardgate/wardgate-chip
	User          string `toml:"user"`           // whom the chip process becomes; default: the centre's own

	// Env is added to the chip process's environment; for modules that are configured so. It is
	// not in the file.
	Env []string `toml:"-"`
}

func (c *Config) checkToken(fault func(key, expected, came string)) {
	t := &c.Token
	for _, k := range []struct{ key, line string }{{"policy.key", c.Policy.Key}, {"server.key", c.Server.Key}} {
		if !isReference(k.line) {
			continue
		}
		if r, err := parseReference(k.line); err != nil {
			fault(k.key, "pkcs11:object=LABEL", err.Error())
		} else if r.token != "" && r.token != t.Label {
			fault(k.key, "the token of [token]", certs.Quote(r.token))
		}
		if t.Module == "" {
			fault("token.module", "the path of the PKCS #11 library, for "+k.key, "nothing")
		}
	}
	switch {
	case t.Module == "" && (t.Label != "" || t.PINFile != "" || t.PINCredential != "" || t.PINEnv != ""):
		fault("token.module", "the path of the PKCS #11 library", "nothing")
	case t.Module != "" && t.Label == "":
		fault("token.label", "the token's label", "nothing")
	}
	sources := 0
	for _, s := range []string{t.PINFile, t.PINCredential, t.PINEnv} {
		if s != "" {
			sources++
		}
	}
	if sources > 1 {
		fault("token", "one of pin_file, pin_credential and pin_env", "several")
	}
	if strings.ContainsRune(t.PINCredential, '/') {
		fault("token.pin_credential", "the name of a systemd credential (pin_file is for files)", certs.Quote(t.PINCredential))
	}
}

// keyToken is the token. It may be away at any time: whoever signs is told then, and everything goes on
// when it is back. The chip process is started when a key is first asked for.
type keyToken struct {
	cfg   Token
	state string // file that remembers a PIN that was refused, so that nobody spends the tries; empty: none
	log   *slog.Logger

	mu     sync.Mutex // guards what follows; held while the chip process starts
	chip   *pkichip.Chip
	tried  time.Time
	failed error
	closed bool
	keys   map[string]pkichip.Key // by reference: keys that were found
}

func newKeyToken(cfg Token, state string, log *slog.Logger) *keyToken {
	return &keyToken{cfg: cfg, state: state, log: log, keys: map[string]pkichip.Key{}}
}

func (k *keyToken) configured() bool { return k.cfg.Module != "" }

// close ends the chip process.
func (k *keyToken) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	if k.chip == nil {
		return nil
	}
	err := k.chip.Close()
	k.chip = nil
	return err
}

// process returns the chip process. Its own death and the token's absence are its own affair: it
// comes back by itself.
func (k *keyToken) process(ctx context.Context) (*pkichip.Chip, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case !k.configured():
		return nil, errNoToken
	case k.closed:
		return nil, errors.New("the centre is closed")
	case k.chip != nil:
		return k.chip, nil
	case k.failed != nil && time.Since(k.tried) < tokenRestart: // the machine's clock: it is the machine that is spared
		return nil, k.failed
	}
	k.tried = time.Now()
	k.chip, k.failed = pkichip.Start(ctx, pkichip.Options{
		Binary: k.cfg.Chip, Module: k.cfg.Module, TokenLabel: k.cfg.Label, StateFile: k.state, User: k.cfg.User, Env: k.cfg.Env, Log: k.event,
		PIN: pkichip.PINSource{File: k.cfg.PINFile, Credential: k.cfg.PINCredential, Env: k.cfg.PINEnv},
	})
	if k.failed != nil {
		k.chip = nil
	}
	return k.chip, k.failed
}

func (k *keyToken) event(e pkichip.Event) {
	switch e.Kind {
	case pkichip.EventInserted, pkichip.EventRestarted:
		k.log.Info("token", "event", string(e.Kind), "text", e.Text)
	case pkichip.EventModuleOutput:
		k.log.Debug("token", "event", string(e.Kind), "text", e.Text)
	default:
		k.log.Error("token: nothing that its keys sign can be made until it is back", "event", string(e.Kind), "text", e.Text)
	}
}

// find returns the key that a reference names; the one that was found before where forget is not set.
func (k *keyToken) find(ctx context.Context, r *reference, forget bool) (pkichip.Key, error) {
	if r.token != "" && r.token != k.cfg.Label {
		return pkichip.Key{}, fmt.Errorf("key %s: expected one on the token %s of [token], came token %s", r, certs.Quote(k.cfg.Label), certs.Quote(r.token))
	}
	chip, err := k.process(ctx)
	if err != nil {
		return pkichip.Key{}, err
	}
	name := r.String()
	k.mu.Lock()
	key, ok := k.keys[name]
	k.mu.Unlock()
	if ok && !forget {
		return key, nil
	}
	all, err := chip.Keys(ctx)
	if err != nil {
		return pkichip.Key{}, err
	}
	n := 0
	for i := range all {
		if r.is(all[i].Label, all[i].ID) {
			key = all[i]
			n++
		}
	}
	if n != 1 {
		return pkichip.Key{}, fmt.Errorf("%w: expected one key %s on the token, came %d of %d", pkichip.ErrNoKey, name, n, len(all))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys[name] = key
	return key, nil
}

// generate makes a key (ECDSA on P-256) and returns it as a signer. When ours is set, a key that has
// the label already is taken: somebody has noted that it is to be made, and was cut short.
func (k *keyToken) generate(ctx context.Context, label string, ours bool) (*tokenSigner, error) {
	chip, err := k.process(ctx)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", certs.Quote(label), err)
	}
	key, err := chip.GenerateKey(ctx, label, pkichip.P256)
	if errors.Is(err, pkichip.ErrExists) && ours {
		key, err = k.find(ctx, &reference{object: label}, true)
	}
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", certs.Quote(label), err)
	}
	return &tokenSigner{token: k, ref: reference{token: k.cfg.Label, object: label, id: key.ID}, public: key.Signer.Public()}, nil
}

// remove deletes a key that generate made.
func (k *keyToken) remove(ctx context.Context, s *tokenSigner) error {
	chip, err := k.process(ctx)
	if err != nil {
		return err
	}
	return chip.DeleteKey(ctx, pkichip.Key{Label: s.ref.object, ID: s.ref.id})
}

// removeNamed deletes the key that a line names; that there is none is no error.
func (k *keyToken) removeNamed(ctx context.Context, line string) error {
	r, err := parseReference(strings.TrimSpace(line))
	if err != nil {
		return err
	}
	key, err := k.find(ctx, &r, true)
	if errors.Is(err, pkichip.ErrNoKey) {
		return nil
	}
	if err != nil {
		return err
	}
	chip, err := k.process(ctx)
	if err != nil {
		return err
	}
	k.mu.Lock()
	delete(k.keys, r.String())
	k.mu.Unlock()
	return chip.DeleteKey(ctx, key)
}

// signer returns the key that a line names, with the public key of its certificate. The token need not
// be there: it is asked when something is to be signed.
func (k *keyToken) signer(line string, public crypto.PublicKey) (*tokenSigner, error) {
	r, err := parseReference(line)
	if err != nil {
		return nil, err
	}
	if !k.configured() {
		return nil, fmt.Errorf("key %s: %w", &r, errNoToken)
	}
	if r.token != "" && r.token != k.cfg.Label {
		return nil, fmt.Errorf("key %s: expected one on the token %s of [token], came token %s", &r, certs.Quote(k.cfg.Label), certs.Quote(r.token))
	}
	return &tokenSigner{token: k, ref: r, public: public}, nil
}

// caKey is signer as package issue asks for it.
func (k *keyToken) caKey(line string, public crypto.PublicKey) (crypto.Signer, error) {
	s, err := k.signer(line, public)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// tokenSigner is a key on the token whose certificate is known. It is safe for concurrent use.
type tokenSigner struct {
	token  *keyToken
	ref    reference
	public crypto.PublicKey
}

var (
	_ issue.Reference = (*tokenSigner)(nil)
	_ issue.Keys      = (*keyToken)(nil).caKey
)

// Public returns the key of the certificate.
func (s *tokenSigner) Public() crypto.PublicKey { return s.public }

// Reference says which key it is, in RFC 7512's words.
func (s *tokenSigner) Reference() string { return s.ref.String() }

// Sign signs, or says why it cannot: issue.ErrUnavailable. No signature leaves that the certificate's
// key does not verify.
func (s *tokenSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), tokenTimeout)
	defer cancel()
	sig, err := s.sign(ctx, digest, opts, false)
	if errors.Is(err, pkichip.ErrNoKey) { // another token of this name has it under another ID
		sig, err = s.sign(ctx, digest, opts, true)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: key %s: %w", issue.ErrUnavailable, &s.ref, err)
	}
	return sig, nil
}

func (s *tokenSigner) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts, forget bool) ([]byte, error) {
	key, err := s.token.find(ctx, &s.ref, forget)
	if err != nil {
		return nil, err
	}
	if !certs.SamePublicKey(key.Signer.Public(), s.public) {
		return nil, errors.New("expected the certificate's key, came another one; correct the reference, or install the certificate that belongs to this key")
	}
	sig, err := key.Signer.SignContext(ctx, digest, opts)
	if err == nil && !verifies(s.public, digest, sig, opts) {
		err = errors.New("expected a signature that the public key verifies, came one that it does not: the token is damaged, replace it")
	}
	return sig, err
}

func verifies(pub crypto.PublicKey, digest, sig []byte, opts crypto.SignerOpts) bool {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, digest, sig)
	case ed25519.PublicKey:
		return ed25519.Verify(k, digest, sig)
	case *rsa.PublicKey:
		if o, ok := opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(k, opts.HashFunc(), digest, sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: o.Hash}) == nil
		}
		return rsa.VerifyPKCS1v15(k, opts.HashFunc(), digest, sig) == nil
	}
	return false
}

// check looks for the key, and says whether it is the certificate's. That the token is away is no
// error: away says why.
func (s *tokenSigner) check(ctx context.Context) (away, err error) {
	key, err := s.token.find(ctx, &s.ref, false)
	if err != nil {
		return fmt.Errorf("key %s: %w", &s.ref, err), nil
	}
	if !certs.SamePublicKey(key.Signer.Public(), s.public) {
		return nil, fmt.Errorf("key %s: expected the certificate's key, came another one; correct the reference, or install the certificate that belongs to this key", &s.ref)
	}
	return nil, nil
}
