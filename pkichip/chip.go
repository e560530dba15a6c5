package pkichip

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"wardgate/pkichip/chipproto"
)

// Options says which token to use and how to run the chip process.
type Options struct {
	Binary     string // path of wardgate-chip
	Module     string // path of the PKCS#11 library
	TokenLabel string // label of the token; empty only for Tokens and InitToken
	PIN        PINSource
	User       string      // user the chip process becomes; empty: stays as it is
	Log        func(Event) // called for every event, must not block; may be nil
	Env        []string    // added to the environment of the chip process ("NAME=value")

	// StateFile remembers across restarts which PIN file was refused, so that a wrong PIN is
	// tried once and not once for every start. Empty: remembered only in memory.
	StateFile string

	Sessions     int           // at most so many signatures at once; zero: 8
	Poll         time.Duration // how often the token's presence is looked at; zero: 500 ms
	PingInterval time.Duration // how often the process's life is looked at; zero: 1 s
	PingTimeout  time.Duration // silence after which it counts as hung; zero: 2 s
	MinBackoff   time.Duration // pause before the first restart, doubled each time; zero: 100 ms
	MaxBackoff   time.Duration // zero: 10 s
}

// PINSource says where the chip process gets the PIN from. At most one of File, Credential, Env
// and Value is set; none means that the token is used without logging in.
type PINSource struct {
	File       string // readable by its owner alone; one line
	Credential string // name of a systemd credential ($CREDENTIALS_DIRECTORY/NAME)
	Env        string // name of an environment variable; File or Credential is better

	// Value is a PIN that a person has typed. It is handed over a pipe and wiped. A chip process
	// that got its PIN like this is not started again when it dies.
	Value []byte
	// SOPIN is the security officer's PIN, for InitToken alone; handed over and wiped like Value.
	SOPIN []byte
}

// Layer is a layer of the token.
type Layer int

// The two layers.
const (
	LayerDevice  Layer = 1
	LayerService Layer = 2
)

// Credential is a key on the token with its certificate.
type Credential struct {
	Layer   Layer
	Service string              // layer 2: the service's name
	Cert    *x509.Certificate   // nil in List for a key that waits for its certificate
	Chain   []*x509.Certificate // certificates between Cert and its anchor, as far as the token has them
	// Signer signs with the key on the token; nil in List when the key is missing. It stays valid
	// when the chip process restarts or the token returns. It can be used by several
	// goroutines; its errors are *Error.
	Signer crypto.Signer

	ID     []byte           // CKA_ID
	Public crypto.PublicKey // nil when the key is missing
}

// EventKind is the kind of an Event. The strings are stable.
type EventKind string

// The kinds of event.
const (
	EventInserted     EventKind = "token-inserted"    // the token is there and usable
	EventRemoved      EventKind = "token-removed"     // the token is gone
	EventPINRefused   EventKind = "pin-refused"       // it was tried once, and is wrong
	EventPINNotTried  EventKind = "pin-not-retried"   // known to be wrong: not tried again
	EventPINLastTry   EventKind = "pin-last-try"      // one try left: not spent without a person
	EventPINLocked    EventKind = "pin-locked"        // the token has locked it
	EventPINSource    EventKind = "pin-source"        // it cannot be read: file, credential or variable
	EventTokenFull    EventKind = "token-full"        // a key or certificate could not be written for want of room
	EventReadOnly     EventKind = "token-read-only"   // or because the token is write-protected
	EventTokenFailed  EventKind = "token-failed"      // the module answers with errors
	EventDied         EventKind = "chip-died"         // the chip process ended
	EventHung         EventKind = "chip-hung"         // the chip process did not answer and was killed
	EventRestarted    EventKind = "chip-restarted"    // a new chip process answers
	EventStartFailed  EventKind = "chip-start-failed" // a new chip process could not be started
	EventModuleOutput EventKind = "module-output"     // a line the module or the process printed; to Log alone
)

// Event is something that happened to the token or the chip process.
type Event struct {
	Kind EventKind
	Text string // for people: what happened; what to do
	Time time.Time
	Err  *Error // what went wrong, with Text and Do apart; nil when nothing did
}

// PIN reports whether the event says that the token is not usable for want of the right PIN.
func (k EventKind) PIN() bool {
	switch k { //nolint:exhaustive // the others have nothing to do with the PIN
	case EventPINRefused, EventPINNotTried, EventPINLastTry, EventPINLocked, EventPINSource:
		return true
	}
	return false
}

// Status is the state of token and chip process.
type Status struct {
	Running  bool // the chip process answers
	PID      int
	Restarts int
	Module   string // what the module says about itself
	LastErr  error  // why the process does not run, or why the token is not usable; nil when all is well
}

// Chip is the token, through its chip process. It can be used by several goroutines.
type Chip struct {
	opt    Options
	events chan Event
	stop   context.CancelFunc
	done   chan struct{} // closed when the supervisor has ended

	emitMu sync.Mutex // orders events; guards ended
	ended  bool

	mu       sync.Mutex // guards what follows
	conn     *conn      // nil while there is no process
	module   string
	restarts int
	lastErr  error
	refused  string // mark of the PIN source that was refused
	closed   bool
	once     bool // the PIN was handed over once: no restart
}

// Start starts the chip process and returns when it has looked for the token. That the token is
// missing or refuses its PIN is no error here: Events, Status and the requests tell, and the
// token may come later. An error means that the process cannot be started or the module cannot
// be loaded. ctx bounds the start alone; Close ends the process.
func Start(ctx context.Context, opt Options) (*Chip, error) {
	if err := opt.complete(); err != nil {
		return nil, err
	}
	c := &Chip{opt: opt, events: make(chan Event, 64), done: make(chan struct{})}
	c.refused = readRefused(opt.StateFile, opt.TokenLabel)
	run, stop := context.WithCancel(context.Background())
	c.stop = stop
	p, hello, err := c.spawn(ctx)
	if err != nil {
		stop()
		return nil, err
	}
	c.once = opt.PIN.Value != nil || opt.PIN.SOPIN != nil
	c.adopt(p, hello)
	close(p.adopted)
	go c.supervise(run, p)
	return c, nil
}

func (o *Options) complete() error {
	set := 0
	for _, s := range []bool{o.PIN.File != "", o.PIN.Credential != "", o.PIN.Env != "", o.PIN.Value != nil} {
		if s {
			set++
		}
	}
	switch {
	case o.Binary == "" || o.Module == "":
		return errors.New("chip: expected the path of wardgate-chip and of the PKCS#11 module, one is empty; set [token] chip and module")
	case set > 1:
		return errors.New("chip: expected one source for the PIN, got several; set one of pin_file, pin_credential and pin_env")
	case strings.ContainsRune(o.PIN.Credential, '/'):
		return errors.New("chip: expected the name of a systemd credential, got a path; use pin_file for files")
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.Poll, 500*time.Millisecond)
	def(&o.PingInterval, time.Second)
	def(&o.PingTimeout, 2*time.Second)
	def(&o.MinBackoff, 100*time.Millisecond)
	def(&o.MaxBackoff, 10*time.Second)
	if o.Sessions <= 0 {
		o.Sessions = 8
	}
	return nil
}

// Events returns the events. When nobody reads, the oldest are dropped. The channel is closed by Close.
func (c *Chip) Events() <-chan Event { return c.events }

// Status returns the state of token and chip process as it is known now, without asking.
func (c *Chip) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{Running: c.conn != nil, Restarts: c.restarts, Module: c.module, LastErr: c.lastErr}
	if c.conn != nil {
		s.PID = c.conn.pid()
	}
	return s
}

// Close ends the chip process and waits for it. Requests under way fail with ErrClosed.
func (c *Chip) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop()
	<-c.done
	return nil
}

// Credentials returns the usable credentials on the token: those with key and certificate, the
// device's first, the services in order of name. Keys that wait for a certificate are in List.
func (c *Chip) Credentials(ctx context.Context) ([]Credential, error) {
	all, err := c.List(ctx)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(x Credential) bool { return x.Cert == nil || x.Signer == nil })
	// A renewal that was cut short leaves two of a name: the newer certificate counts.
	var out []Credential
	for _, x := range all {
		if n := len(out); n == 0 || out[n-1].Layer != x.Layer || out[n-1].Service != x.Service {
			out = append(out, x)
		} else if newer(x.Cert, out[n-1].Cert) {
			out[n-1] = x
		}
	}
	return out, nil
}

// newer reports whether x counts where there is y as well: it is the same whoever asks, in whatever
// order the token lists them.
func newer(x, y *x509.Certificate) bool {
	return cmp.Or(x.NotBefore.Compare(y.NotBefore), x.NotAfter.Compare(y.NotAfter), bytes.Compare(y.Raw, x.Raw)) > 0
}

// List returns everything on the token that is ours: also keys without certificate (Cert is nil),
// certificates without key (Signer is nil), both certificates of a service when a Store was cut
// short, and what is left of a key that was not made or removed completely (Cert and Signer are nil).
func (c *Chip) List(ctx context.Context) ([]Credential, error) {
	m, err := c.request(ctx, &chipproto.Message{Type: chipproto.TypeList})
	if err != nil {
		return nil, err
	}
	var out []Credential
	for i := range m.Creds {
		x, err := c.credential(&m.Creds[i])
		if err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	slices.SortStableFunc(out, func(a, b Credential) int {
		if a.Layer != b.Layer {
			return int(a.Layer) - int(b.Layer)
		}
		return strings.Compare(a.Service, b.Service)
	})
	return out, nil
}

func (c *Chip) credential(m *chipproto.Credential) (Credential, error) {
	x := Credential{Layer: Layer(m.Layer), Service: m.Service, ID: m.ID}
	fail := func(err error) (Credential, error) {
		e := processError(ErrTokenFailed, fmt.Sprintf("the token's content for %s cannot be used: %v", name(x.Layer, x.Service), err), "import the certificate again")
		return Credential{}, e
	}
	if len(m.Cert) > 0 {
		cert, err := x509.ParseCertificate(m.Cert)
		if err != nil {
			return fail(err)
		}
		x.Cert = cert
	}
	for _, der := range m.Chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return fail(err)
		}
		x.Chain = append(x.Chain, cert)
	}
	if len(m.Public) > 0 {
		pub, err := x509.ParsePKIXPublicKey(m.Public)
		if err != nil {
			return fail(err)
		}
		x.Public = pub
		if m.HasKey {
			x.Signer = &Signer{chip: c, layer: m.Layer, service: m.Service, id: m.ID, public: pub}
		}
	}
	return x, nil
}

func name(l Layer, service string) string {
	if l == LayerDevice {
		return "the device"
	}
	return fmt.Sprintf("service %q", service)
}

// TokenInfo describes a token, as far as the module tells.
type TokenInfo = chipproto.TokenInfo

// Token asks for the state of the token; Tokens for all tokens that the module sees.
func (c *Chip) Token(ctx context.Context) (TokenInfo, error) {
	m, err := c.request(ctx, &chipproto.Message{Type: chipproto.TypeStatus})
	if err != nil {
		return TokenInfo{}, err
	}
	return m.Tokens[0], nil
}

// Tokens lists the tokens that the module sees.
func (c *Chip) Tokens(ctx context.Context) ([]TokenInfo, error) {
	m, err := c.request(ctx, &chipproto.Message{Type: chipproto.TypeTokens})
	if err != nil {
		return nil, err
	}
	return m.Tokens, nil
}

// KeyType names a kind of key: "p256", "p384", "rsa2048", "rsa3072" or "ed25519".
type KeyType = chipproto.KeyType

// The kinds of key.
const (
	P256    = chipproto.P256
	P384    = chipproto.P384
	RSA2048 = chipproto.RSA2048
	RSA3072 = chipproto.RSA3072
	Ed25519 = chipproto.Ed25519
)

// KeyTypes asks which kinds of key the token can make.
func (c *Chip) KeyTypes(ctx context.Context) ([]KeyType, error) {
	m, err := c.request(ctx, &chipproto.Message{Type: chipproto.TypeMechanisms})
	if err != nil {
		return nil, err
	}
	return m.KeyTypes, nil
}

// Generate makes a key pair on the token, sensitive and not extractable, and returns it; it waits
// for its certificate (Store). A key of the same name that still waits is replaced; one that
// has a certificate stays in use until Store. Layer 1 is made once (ErrExists); layer 2 needs a
// whole layer 1 (ErrNoDevice, ErrDeviceBroken).
func (c *Chip) Generate(ctx context.Context, layer Layer, service string, kind KeyType) (Credential, error) {
	m, err := c.request(ctx, &chipproto.Message{Type: chipproto.TypeGenerate, Layer: chipproto.Layer(layer), Service: service, KeyType: kind})
	if err != nil {
		return Credential{}, err
	}
	return c.credential(&chipproto.Credential{Layer: chipproto.Layer(layer), Service: service, ID: m.KeyID, Public: m.Public, HasKey: true})
}

// Store is a certificate that is to be written to the token.
type Store struct {
	Layer   Layer
	Service string
	Cert    *x509.Certificate
	Chain   []*x509.Certificate // intermediates
	// Anchors are the service CA's (or the device CA's) that the caller trusts. Layer 2 is never
	// written without.
	Anchors []*x509.Certificate
	CRLs    []*x509.RevocationList
	Replace bool // layer 1 has a certificate already and shall get this one
}

// Store writes a certificate. It is refused unless its key is on the token (ErrKeyNotOnToken), it
// chains to an anchor (ErrUntrusted, with Error.Class) and, in layer 2, it is bound to this
// device's certificate (ErrNotBound). What the service had before is removed afterwards.
func (c *Chip) Store(ctx context.Context, s Store) error {
	m := &chipproto.Message{Type: chipproto.TypeStore, Layer: chipproto.Layer(s.Layer), Service: s.Service, Cert: s.Cert.Raw, Replace: s.Replace}
	for _, x := range s.Chain {
		m.Chain = append(m.Chain, x.Raw)
	}
	for _, x := range s.Anchors {
		m.Anchors = append(m.Anchors, x.Raw)
	}
	for _, x := range s.CRLs {
		m.CRLs = append(m.CRLs, x.Raw)
	}
	_, err := c.request(ctx, m)
	return err
}

// Delete removes a service from layer 2: key, certificate and intermediates.
func (c *Chip) Delete(ctx context.Context, service string) error {
	_, err := c.request(ctx, &chipproto.Message{Type: chipproto.TypeDelete, Layer: chipproto.LayerService, Service: service})
	return err
}

// InitToken initialises the token in the first free slot under a label, with the PINs of
// Options.PIN (Value and SOPIN). A token of that label is an error (ErrExists) unless erase is
// set, which destroys everything on it.
func (c *Chip) InitToken(ctx context.Context, label string, erase bool) (TokenInfo, error) {
	m, err := c.request(ctx, &chipproto.Message{Type: chipproto.TypeInitToken, Label: label, Replace: erase})
	if err != nil {
		return TokenInfo{}, err
	}
	return m.Tokens[0], nil
}
