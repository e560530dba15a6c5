package token

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	"wardgate/internal/certs"
	"wardgate/pkichip/chipproto"
)

// Config says which token to use.
type Config struct {
	Module   string // path of the library
	Label    string // of the token; empty: only Tokens and Init work
	Sessions int    // at most so many operations at once
	Poll     time.Duration
	PIN      *PIN
	Refused  string // mark of a PIN source that was refused before this process started
	Event    func(kind chipproto.EventKind, e *Error)
	Now      func() time.Time
	Rand     io.Reader
}

// Token is one token behind a PKCS#11 module.
//
//	absent ──found, PIN accepted──▶ ready ──gone──▶ absent
//	   └──found, PIN refused──▶ pin, locked ──gone──▶ absent
type Token struct {
	cfg  Config
	p    *pkcs11.Ctx
	info string // what the module says about itself

	// life is held for reading by whoever calls the module, for writing by whoever starts,
	// ends or re-initialises it.
	life     sync.RWMutex
	started  bool // C_Initialize succeeded; guarded by life
	slot     uint
	watch    pkcs11.SessionHandle // holds the login; guarded by life
	serial   string
	access   uint          // CKF_RW_SESSION, or 0 for a token that may only be read; guarded by life
	sessions chan struct{} // slots of the session pool

	mu      sync.Mutex // guards what follows
	state   chipproto.TokenState
	why     *Error // why the state is not ready
	seen    bool   // the token was found once
	free    []pkcs11.SessionHandle
	gen     int // counts logins; handles of another generation are void
	keys    map[string]keyHandle
	refused string
	label   string // of the token; empty: none was chosen

	writeMu sync.Mutex // one change of the token's content at a time
	stop    chan struct{}
	stopped chan struct{}
}

type keyHandle struct {
	h    pkcs11.ObjectHandle
	kind uint // CKK_…
}

// Open loads the module and looks for the token. That the token is missing or refuses the PIN is
// a state, not an error; an error means that the module cannot be used.
func Open(cfg Config) (*Token, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Sessions <= 0 {
		cfg.Sessions = 8
	}
	if cfg.Poll <= 0 {
		cfg.Poll = 500 * time.Millisecond
	}
	if cfg.PIN == nil {
		cfg.PIN = &PIN{}
	}
	p := pkcs11.New(cfg.Module)
	if p == nil {
		return nil, fail(chipproto.CodeModule, fmt.Sprintf("the PKCS#11 module %s cannot be loaded", cfg.Module), "check the path, that the library is for this machine, and that what it depends on is installed")
	}
	t := &Token{
		cfg: cfg, label: cfg.Label, p: p, sessions: make(chan struct{}, cfg.Sessions), keys: map[string]keyHandle{}, refused: cfg.Refused,
		stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	if err := t.reopen(-1); err != nil && err.Code == chipproto.CodeModule {
		// A module that cannot start because its token is not there says no more than that.
		t.setState(chipproto.StateAbsent, err)
	}
	if i, err := p.GetInfo(); err == nil {
		t.info = strings.TrimSpace(fmt.Sprintf("%s (%s %d.%d, PKCS#11 %d.%d)", trim(i.LibraryDescription), trim(i.ManufacturerID),
			i.LibraryVersion.Major, i.LibraryVersion.Minor, i.CryptokiVersion.Major, i.CryptokiVersion.Minor))
	}
	go t.monitor()
	return t, nil
}

func trim(s string) string { return strings.ToValidUTF8(strings.TrimRight(s, " \x00"), "?") }

// Close logs out and ends the module.
func (t *Token) Close() {
	close(t.stop)
	<-t.stopped
	t.life.Lock()
	defer t.life.Unlock()
	t.shutdown()
	t.p.Destroy()
}

// shutdown ends the module; life is held for writing.
func (t *Token) shutdown() {
	t.mu.Lock()
	t.free, t.keys = nil, map[string]keyHandle{}
	t.gen++
	t.mu.Unlock()
	if t.started {
		_ = t.p.Finalize() // the module may be beyond answering; it is initialised anew
		t.started = false
	}
}

func (t *Token) setState(s chipproto.TokenState, why *Error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state, t.why = s, why
}

// State returns the state and, when it is not ready, why.
func (t *Token) State() (chipproto.TokenState, *Error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state, t.why
}

func (t *Token) tokenLabel() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.label
}

func (t *Token) setLabel(s string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.label = s
}

func (t *Token) generation() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.gen
}

// reopen initialises the module, finds the token and logs in, unless somebody has done so since
// generation gen (-1: always). Some modules, SoftHSM among them, see a token again only after
// C_Finalize.
//
// Changes of state are told as events, except at the very first time.
func (t *Token) reopen(gen int) *Error {
	t.life.Lock()
	if gen >= 0 && t.generation() != gen {
		defer t.life.Unlock()
		_, why := t.State()
		return why
	}
	before, whyBefore := t.State()
	err := t.reopenLocked()
	t.life.Unlock() // whoever hears of it may call the token
	switch {
	case gen < 0:
	case err == nil && before != chipproto.StateReady:
		t.event(chipproto.EventInserted, fail(chipproto.OK, fmt.Sprintf("the token %s is there", certs.Quote(t.tokenLabel())), ""))
	case err != nil && (before == chipproto.StateReady || whyBefore == nil || whyBefore.Code != err.Code):
		t.notice(err)
	}
	return err
}

func (t *Token) reopenLocked() *Error {
	t.shutdown()
	err := t.login()
	if err == nil {
		t.setState(chipproto.StateReady, nil)
		return nil
	}
	switch err.Code { //nolint:exhaustive // the rest is a failure
	case chipproto.CodeNoToken, chipproto.CodeRemoved:
		t.mu.Lock()
		if t.seen {
			err.Code = chipproto.CodeRemoved
		}
		t.mu.Unlock()
		t.setState(chipproto.StateAbsent, err)
	case chipproto.CodePINLocked:
		t.setState(chipproto.StateLocked, err)
	case chipproto.CodePINWrong, chipproto.CodePINNotRetried, chipproto.CodePINLastTry, chipproto.CodePINSource:
		t.setState(chipproto.StatePIN, err)
	default:
		t.setState(chipproto.StateFailed, err)
	}
	return err
}

// login does the work of reopen; life is held for writing.
func (t *Token) login() *Error {
	if err := t.p.Initialize(); err != nil {
		if rv, ok := errors.AsType[pkcs11.Error](err); !ok || rv != pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED {
			e := wrap("C_Initialize", err)
			e.Code = chipproto.CodeModule
			e.Text = fmt.Sprintf("the PKCS#11 module %s does not start: %s", t.cfg.Module, e.Text)
			if t.seenBefore() { // SoftHSM without its folder
				e.Code = chipproto.CodeRemoved
				e.Text = fmt.Sprintf("the token %s has been removed; %s", certs.Quote(t.tokenLabel()), e.Text)
				e.Do = "put it back"
			}
			return e
		}
	}
	t.started = true
	if t.tokenLabel() == "" {
		return nil
	}
	slot, info, err := t.find()
	if err != nil {
		return err
	}
	t.slot, t.serial = slot, info.SerialNumber
	t.mu.Lock()
	t.seen = true
	t.mu.Unlock()
	t.access = pkcs11.CKF_RW_SESSION
	s, e := t.openSession()
	if rv, ok := errors.AsType[pkcs11.Error](e); ok && rv == pkcs11.CKR_TOKEN_WRITE_PROTECTED {
		t.access = 0 // it still signs; who wants to write is told
		s, e = t.openSession()
	}
	if e != nil {
		return wrap("C_OpenSession", e)
	}
	t.watch = s
	return t.enterPIN(s, info)
}

// openSession opens a session with the rights that the token gives; life is held.
func (t *Token) openSession() (pkcs11.SessionHandle, error) {
	return t.p.OpenSession(t.slot, pkcs11.CKF_SERIAL_SESSION|t.access)
}

func (t *Token) seenBefore() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen
}

// find looks for the token by its label.
func (t *Token) find() (uint, pkcs11.TokenInfo, *Error) {
	slots, err := t.p.GetSlotList(true)
	if err != nil {
		return 0, pkcs11.TokenInfo{}, wrap("C_GetSlotList", err)
	}
	var found []uint
	var info pkcs11.TokenInfo
	var others []string
	for _, s := range slots {
		i, err := t.p.GetTokenInfo(s)
		if err != nil {
			continue
		}
		if trim(i.Label) == t.tokenLabel() {
			found, info = append(found, s), i
		} else if l := trim(i.Label); l != "" && len(others) < 5 {
			others = append(others, certs.Quote(l))
		}
	}
	switch len(found) {
	case 1:
		return found[0], info, nil
	case 0:
		text := fmt.Sprintf("there is no token with the label %s", certs.Quote(t.tokenLabel()))
		if len(others) > 0 {
			text += "; there is " + strings.Join(others, ", ")
		}
		if t.seenBefore() {
			return 0, info, fail(chipproto.CodeRemoved, fmt.Sprintf("the token %s has been removed", certs.Quote(t.tokenLabel())), "put it back")
		}
		return 0, info, fail(chipproto.CodeNoToken, text, "put it in, or make it with `wardgate token init`")
	}
	return 0, info, fail(chipproto.CodeToken, fmt.Sprintf("there are %d tokens with the label %s", len(found), certs.Quote(t.tokenLabel())), "take one out or give it another label")
}

// enterPIN logs in. A PIN is tried once: what the token refused is not tried again until its
// source changes, and the last try is left to a person.
func (t *Token) enterPIN(s pkcs11.SessionHandle, info pkcs11.TokenInfo) *Error {
	if t.cfg.PIN.none() {
		return nil // whoever asks for a private key is told
	}
	mark, err := t.cfg.PIN.mark()
	if err != nil {
		return wrap(whileLogin, err)
	}
	t.mu.Lock()
	refused := t.refused
	t.mu.Unlock()
	flags := pinState(info.Flags)
	with := func(e *Error) *Error {
		e.Source, e.Tries = mark, triesLeft(flags)
		return e
	}
	switch {
	case flags == chipproto.PINLocked:
		e := fail(chipproto.CodePINLocked, "the token has locked the PIN after too many wrong ones", "unlock it with the security officer's PIN and the token's own tool")
		e.Tries = 0 // and no source: this PIN was not tried
		return e
	case refused != "" && refused == mark:
		return with(fail(chipproto.CodePINNotRetried, "the token refused this PIN before, so it is not tried again; "+triesText(flags), "correct the PIN; if it is right by now, write the PIN file again"))
	case flags == chipproto.PINFinalTry && !t.cfg.PIN.attended():
		e := fail(chipproto.CodePINLastTry, "the token has one PIN try left, which is not spent unattended", "enter the PIN by hand: `wardgate token check --ask-pin`; a correct one gives all tries back")
		e.Tries = 1
		return e
	}
	err = t.cfg.PIN.with(func(pin string) error { return t.p.Login(s, pkcs11.CKU_USER, pin) })
	if err == nil {
		t.mu.Lock()
		t.refused = ""
		t.mu.Unlock()
		return nil
	}
	if rv, ok := errors.AsType[pkcs11.Error](err); ok && rv == pkcs11.CKR_USER_ALREADY_LOGGED_IN {
		return nil
	}
	e := wrap(whileLogin, err)
	switch e.Code { //nolint:exhaustive // the others say nothing about the PIN
	case chipproto.CodePINWrong, chipproto.CodePINLocked:
		t.mu.Lock()
		t.refused = mark
		t.mu.Unlock()
		if after, err := t.p.GetTokenInfo(t.slot); err == nil {
			flags = pinState(after.Flags)
		}
		if flags == chipproto.PINLocked {
			e.Code = chipproto.CodePINLocked
		}
		e.Text += "; " + triesText(flags)
		return with(e)
	}
	return e
}

// pinState reads the flags of the user PIN (PKCS #11 v2.40, section 3.3, CK_TOKEN_INFO).
func pinState(flags uint) chipproto.PINState {
	switch {
	case flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return chipproto.PINLocked
	case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return chipproto.PINFinalTry
	case flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0:
		return chipproto.PINLow
	}
	return chipproto.PINGood
}

func triesLeft(p chipproto.PINState) int8 {
	switch p {
	case chipproto.PINLocked:
		return 0
	case chipproto.PINFinalTry:
		return 1
	case chipproto.PINUnknown, chipproto.PINGood, chipproto.PINLow:
	}
	return -1
}

func triesText(p chipproto.PINState) string {
	switch p {
	case chipproto.PINLocked:
		return "the PIN is locked now"
	case chipproto.PINFinalTry:
		return "one try is left"
	case chipproto.PINLow:
		return "the token says that tries have been used up, but not how many are left"
	case chipproto.PINUnknown, chipproto.PINGood:
	}
	return "the token does not say how many tries are left"
}

// present reports whether the token is still there and logged in as before.
func (t *Token) present() bool {
	i, err := t.p.GetTokenInfo(t.slot)
	if err != nil || trim(i.Label) != t.tokenLabel() || i.SerialNumber != t.serial {
		return false
	}
	s, err := t.p.GetSessionInfo(t.watch)
	if err != nil {
		return false
	}
	return t.cfg.PIN.none() || s.State == pkcs11.CKS_RW_USER_FUNCTIONS || s.State == pkcs11.CKS_RO_USER_FUNCTIONS
}

// with runs f with a session of the pool. After an error that may mean that the token or the
// session is gone, f is run once more, when need be after looking for the token anew.
func (t *Token) with(f func(s pkcs11.SessionHandle) error) *Error {
	for attempt := 0; ; attempt++ {
		gen := t.generation()
		err := t.try(f)
		if err == nil {
			return nil
		}
		if !doubtful(err) {
			return wrap("", err)
		}
		t.life.RLock()
		ok := t.started && t.present()
		t.life.RUnlock()
		switch {
		case attempt > 0:
			return wrap("", err)
		case ok: // a stale handle, perhaps: they have been forgotten
			continue
		}
		if e := t.reopen(gen); e != nil {
			return e
		}
	}
}

// opError is an error of a PKCS#11 function.
type opError struct {
	op  string
	err error
}

func (e *opError) Error() string { return e.op + ": " + e.err.Error() }
func (e *opError) Unwrap() error { return e.err }

// in names the PKCS#11 function an error came from.
func in(op string, err error) error {
	if err == nil {
		return nil
	}
	return &opError{op, err}
}

func (t *Token) try(f func(s pkcs11.SessionHandle) error) error {
	if state, why := t.State(); state != chipproto.StateReady {
		if why == nil {
			why = fail(chipproto.CodeNoToken, "the token is not there", "put it in")
		}
		return why
	}
	if t.tokenLabel() == "" {
		return fail(chipproto.CodeNoToken, "no token was chosen", "give its label")
	}
	t.sessions <- struct{}{}
	defer func() { <-t.sessions }()
	t.life.RLock()
	defer t.life.RUnlock()
	if !t.started {
		return fail(chipproto.CodeRemoved, "the token has been removed", "put it back")
	}
	t.mu.Lock()
	gen := t.gen
	var s pkcs11.SessionHandle
	pooled := len(t.free) > 0
	if pooled {
		s = t.free[len(t.free)-1]
		t.free = t.free[:len(t.free)-1]
	}
	t.mu.Unlock()
	if !pooled {
		var err error
		if s, err = t.openSession(); err != nil {
			return in("C_OpenSession", err)
		}
	}
	err := f(s)
	if err != nil && isModule(err) {
		// The session may have an operation under way: it is not used again.
		_ = t.p.CloseSession(s)
		return err
	}
	t.mu.Lock()
	if t.gen == gen {
		t.free = append(t.free, s)
	}
	t.mu.Unlock()
	return err
}

func isModule(err error) bool {
	_, ok := errors.AsType[pkcs11.Error](err)
	return ok
}

// monitor looks at the token every Poll until Close.
func (t *Token) monitor() {
	defer close(t.stopped)
	tick := time.NewTicker(t.cfg.Poll)
	defer tick.Stop()
	for {
		select {
		case <-t.stop:
			return
		case <-tick.C:
		}
		if t.tokenLabel() != "" {
			t.look()
		}
	}
}

func (t *Token) look() {
	gen := t.generation()
	state, why := t.State()
	switch state {
	case chipproto.StateReady:
		t.life.RLock()
		ok := t.started && t.present()
		t.life.RUnlock()
		if ok {
			return
		}
	case chipproto.StatePIN, chipproto.StateLocked:
		if !t.worthAnotherLook(why) {
			return
		}
	case chipproto.StateAbsent, chipproto.StateFailed, chipproto.StatePresent:
	}
	_ = t.reopen(gen) // tells of a change itself
}

// worthAnotherLook reports whether something has changed since the PIN was not accepted. The PIN
// that was refused stays refused (enterPIN); what may change is the token, or what it says.
func (t *Token) worthAnotherLook(why *Error) bool {
	t.life.RLock()
	defer t.life.RUnlock()
	i, err := t.p.GetTokenInfo(t.slot)
	if !t.started || err != nil || i.SerialNumber != t.serial || why == nil {
		return true
	}
	switch why.Code { //nolint:exhaustive // the others wait for a new PIN
	case chipproto.CodePINSource:
		return true
	case chipproto.CodePINLastTry:
		return pinState(i.Flags) != chipproto.PINFinalTry
	case chipproto.CodePINLocked:
		return pinState(i.Flags) != chipproto.PINLocked
	}
	return false
}

// notice tells why the token cannot be used.
func (t *Token) notice(e *Error) {
	switch e.Code { //nolint:exhaustive // the rest is a failure
	case chipproto.CodeNoToken, chipproto.CodeRemoved:
		t.event(chipproto.EventRemoved, e)
	case chipproto.CodePINWrong, chipproto.CodePINNotRetried, chipproto.CodePINLocked, chipproto.CodePINLastTry, chipproto.CodePINSource:
		t.event(chipproto.EventPIN, e)
	default:
		t.event(chipproto.EventFailed, e)
	}
}

func (t *Token) event(k chipproto.EventKind, e *Error) {
	if t.cfg.Event != nil {
		t.cfg.Event(k, e)
	}
}

// Module returns what the module says about itself.
func (t *Token) Module() string { return t.info }

// Info describes the token, or how it is missing.
func (t *Token) Info() chipproto.TokenInfo {
	state, _ := t.State()
	out := chipproto.TokenInfo{Label: t.tokenLabel(), State: state}
	if t.cfg.PIN.none() && state == chipproto.StateReady {
		out.State = chipproto.StatePresent
	}
	t.life.RLock()
	defer t.life.RUnlock()
	if !t.started || state == chipproto.StateAbsent || t.tokenLabel() == "" {
		return out
	}
	i, err := t.p.GetTokenInfo(t.slot)
	if err != nil {
		out.State = chipproto.StateAbsent
		return out
	}
	out = describe(t.slot, i)
	if out.State = state; t.cfg.PIN.none() && state == chipproto.StateReady {
		out.State = chipproto.StatePresent
	}
	return out
}

func describe(slot uint, i pkcs11.TokenInfo) chipproto.TokenInfo {
	free := uint64(i.FreePrivateMemory)
	return chipproto.TokenInfo{
		Slot: uint64(slot), Label: trim(i.Label), Manufacturer: trim(i.ManufacturerID), Model: trim(i.Model), Serial: trim(i.SerialNumber),
		State: chipproto.StatePresent, PIN: pinState(i.Flags), Initialized: i.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0, FreePrivate: free,
	}
}

// Tokens lists what the module sees.
func (t *Token) Tokens() ([]chipproto.TokenInfo, *Error) {
	t.life.RLock()
	defer t.life.RUnlock()
	if !t.started {
		_, why := t.State()
		if why == nil {
			why = fail(chipproto.CodeModule, "the PKCS#11 module is not ready", "try again")
		}
		return nil, why
	}
	slots, err := t.p.GetSlotList(true)
	if err != nil {
		return nil, wrap("C_GetSlotList", err)
	}
	var out []chipproto.TokenInfo
	for _, s := range slots {
		if len(out) == 64 {
			break
		}
		if i, err := t.p.GetTokenInfo(s); err == nil {
			out = append(out, describe(s, i))
		}
	}
	return out, nil
}
