package router

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"wardgate/audit"
	"wardgate/pkichip"
	"wardgate/router/control"
)

// startChip starts the chip process. A token that is missing or refuses the PIN is not an error
// here: the appliance runs, says what is wrong, and works when the token is there.
func (r *Router) startChip() (*pkichip.Chip, error) {
	t := r.cfg.Token
	return pkichip.Start(context.Background(), pkichip.Options{
		Binary: t.Chip, Module: t.Module, TokenLabel: t.Label, User: t.User,
		PIN:       pkichip.PINSource{File: t.PINFile, Credential: t.PINCredential, Env: t.PINEnv},
		StateFile: filepath.Join(r.cfg.Daemon.StateDir, "pin-refused"),
		Log: func(ev pkichip.Event) {
			if ev.Kind == pkichip.EventModuleOutput {
				r.log.Info("chip process", zap.String("text", ev.Text))
			}
		},
	})
}

// refreshCredentials asks the token what it holds.
func (r *Router) refreshCredentials(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	creds, err := r.chip.Credentials(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		// A chip process that starts again says nothing about the token: the signers stay valid
		// across it, so no tunnel ends for it, and no connection is refused.
		if !errors.Is(err, pkichip.ErrChipRestarting) && !errors.Is(err, pkichip.ErrChipHung) && !errors.Is(err, pkichip.ErrBusy) {
			r.creds = nil
		}
		r.tokenState, r.tokenErr = tokenTrouble(err)
		r.log.Warn("token", zap.String("state", r.tokenState), zap.Error(err))
		return
	}
	r.creds, r.tokenState, r.tokenErr = creds, control.TokenReady, nil
	select {
	case r.staplesWanted <- struct{}{}:
	default:
	}
	if d := credential(creds, 1, ""); d != nil {
		r.deviceDER = d.Cert.Raw
	}
}

// tokenTroubles are the failures of the token with their stable codes, the special ones first, and the
// state that they leave the token in.
var tokenTroubles = []struct {
	err         error
	code, title string
	state       string
}{
	{pkichip.ErrTokenRemoved, "token-removed", "The token is not there", control.TokenRemoved},
	{pkichip.ErrNoToken, "token-removed", "The token is not there", control.TokenRemoved},
	{pkichip.ErrPINNotRetried, "pin-not-retried", "The PIN is known to be wrong and is not tried again", control.TokenPINRefused},
	{pkichip.ErrPINLastTry, "pin-last-try", "The last try of the PIN is not spent without a person", control.TokenPINRefused},
	{pkichip.ErrPINLocked, "pin-locked", "The token's PIN is locked", control.TokenPINRefused},
	{pkichip.ErrPINSource, "pin-source", "The PIN cannot be read", control.TokenPINRefused},
	{pkichip.ErrPIN, "pin-refused", "The token refuses the PIN", control.TokenPINRefused},
	{pkichip.ErrChipRestarting, "token-starting", "The chip process is starting", control.TokenStarting},
	{pkichip.ErrChipHung, "chip-hung", "The chip process did not answer and is started again", control.TokenStarting},
}

// tokenTrouble translates an error of the chip process for the operator.
func tokenTrouble(err error) (state string, e *control.Error) {
	e = &control.Error{Kind: control.KindToken, Code: "token-failed", Title: "The token cannot be used", Detail: err.Error(), Hint: "check it with: wardgate token check"}
	if te, ok := errors.AsType[*pkichip.Error](err); ok {
		e.Detail = te.Text
		if te.Do != "" {
			e.Hint = te.Do
		}
	}
	for _, t := range tokenTroubles {
		if errors.Is(err, t.err) {
			e.Code, e.Title = t.code, t.title
			return t.state, e
		}
	}
	return control.TokenFailed, e
}

// tokenText says in half a sentence how the token is; for messages.
func (r *Router) tokenText() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tokenErr != nil {
		return r.tokenErr.Error()
	}
	return "the token is " + r.tokenState
}

// tokenEvents follows the token's life: when it goes, everything that depends on it ends (CHIP-6), and comes back
// with it.
func (r *Router) tokenEvents(ctx context.Context) {
	for {
		var ev pkichip.Event
		var ok bool
		select {
		case <-ctx.Done():
			return
		case ev, ok = <-r.chip.Events():
			if !ok {
				return
			}
		}
		r.log.Info("token event", zap.String("event", string(ev.Kind)), zap.String("text", ev.Text))
		kind, result := audit.EventTokenError, audit.ResultFailed
		switch ev.Kind {
		case pkichip.EventRemoved:
			kind, result = audit.EventTokenRemoved, audit.ResultInfo
		case pkichip.EventInserted:
			kind, result = audit.EventTokenInserted, audit.ResultInfo
		case pkichip.EventPINRefused:
			kind, result = audit.EventPINRefused, audit.ResultRefused
		case pkichip.EventPINNotTried:
			kind, result = audit.EventPINNotTried, audit.ResultRefused
		case pkichip.EventPINLastTry:
			kind, result = audit.EventPINLastTry, audit.ResultRefused
		case pkichip.EventPINLocked:
			kind, result = audit.EventPINLocked, audit.ResultRefused
		case pkichip.EventPINSource:
			kind = audit.EventPINSource
		case pkichip.EventTokenFull:
			kind = audit.EventTokenFull
		case pkichip.EventReadOnly:
			kind = audit.EventTokenReadOnly
		case pkichip.EventDied:
			kind = audit.EventChipDied
		case pkichip.EventHung:
			kind = audit.EventChipHung
		case pkichip.EventStartFailed:
			kind = audit.EventChipStartFailed
		case pkichip.EventRestarted:
			kind, result = audit.EventChipRestarted, audit.ResultInfo
		case pkichip.EventModuleOutput:
			continue
		case pkichip.EventTokenFailed:
		}
		r.record(audit.Record{Event: kind, What: r.cfg.Token.Label, Result: result, Detail: map[string]string{"text": ev.Text}})
		r.refreshCredentials(ctx)
		if r.table() == nil {
			r.loadPolicy() // perhaps it only lacked the device certificate
		}
		r.setPeers()
		if ev.Kind == pkichip.EventInserted {
			r.centre.wake()
		}
	}
}
