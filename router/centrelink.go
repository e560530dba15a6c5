package router

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"wardgate/audit"
	"wardgate/internal/certs"
	"wardgate/router/centre"
	"wardgate/router/config"
	"wardgate/router/control"
)

// Files of the centre in the state directory.
const (
	centreURLFile     = "centre-url"          // what `wardgate join URL` said, where the configuration says nothing
	centreJournalFile = "centre-journal.json" // centre.JournalFile
)

// centreLink keeps the agent of the SP's centre running, and stops it while somebody joins by hand.
type centreLink struct {
	r       *Router
	anchors []*x509.Certificate
	token   centreToken
	keyTold atomic.Pointer[func(service string)] // who wants to know of new keys, or nil

	joinMu sync.Mutex // one join at a time; taken before mu

	mu      sync.Mutex // guards what follows
	url     string     // empty: not joined yet
	agent   *centre.Agent
	paused  bool                     // somebody joins
	stop    context.CancelFunc       // ends the agent's Run; nil: it does not run
	ended   chan struct{}            // closed when Run has ended
	changed chan struct{}            // closed and replaced when agent or paused change
	trouble map[string]centreTrouble // what fails, by centre.Event.Activity
}

type centreTrouble struct {
	err *control.Error
	at  time.Time
}

// newCentreLink prepares the link, or returns nil where the configuration names no centre.
func (r *Router) newCentreLink(c chip) (*centreLink, error) {
	if len(r.cfg.SP.Anchors) == 0 {
		return nil, nil //nolint:nilnil // no centre is an ordinary thing
	}
	l := &centreLink{r: r, changed: make(chan struct{}), trouble: make(map[string]centreTrouble)}
	l.token = centreToken{c, func(service string) {
		if f := l.keyTold.Load(); f != nil {
			(*f)(service)
		}
	}}
	for _, f := range r.cfg.SP.Anchors {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("[sp] anchors: %w", err)
		}
		c, err := certs.ParseCertificates(b)
		if err != nil {
			return nil, fmt.Errorf("[sp] anchors: %s: %w", f, err)
		}
		l.anchors = append(l.anchors, c...)
	}
	url := r.cfg.SP.URL
	if url == "" {
		b, err := os.ReadFile(l.urlFile())
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return l, nil
		case err != nil:
			return nil, fmt.Errorf("the centre's address: %w", err)
		}
		url = strings.TrimSpace(string(b))
		if err := config.CheckURL(url); err != nil {
			return nil, fmt.Errorf("%s: %w; remove the file and join again: wardgate join URL", l.urlFile(), err)
		}
	}
	agent, err := l.newAgent(url)
	if err != nil {
		return nil, err
	}
	l.url, l.agent = url, agent
	return l, nil
}

func (l *centreLink) urlFile() string { return filepath.Join(l.r.cfg.Daemon.StateDir, centreURLFile) }

func (l *centreLink) newAgent(url string) (*centre.Agent, error) {
	return centre.New(centre.Config{
		URL: url, Anchors: l.anchors,
		Token: l.token, Policies: policySink{l.r, url}, Reporter: reporter{l.r},
		Journal: centre.File(filepath.Join(l.r.cfg.Daemon.StateDir, centreJournalFile)),
		Clock:   centre.SystemClock{}, Rand: rand.Reader, Notify: l.event,
	})
}

// keep runs the agent until ctx ends.
func (l *centreLink) keep(ctx context.Context) {
	for ctx.Err() == nil {
		l.mu.Lock()
		agent, changed := l.agent, l.changed
		if agent == nil || l.paused {
			l.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-changed:
			}
			continue
		}
		run, cancel := context.WithCancel(ctx)
		ended := make(chan struct{})
		l.stop, l.ended = cancel, ended
		l.mu.Unlock()
		if err := agent.Run(run); err != nil && run.Err() == nil {
			l.r.log.Error("the centre's agent ends", zap.Error(err))
		}
		cancel()
		l.mu.Lock()
		l.stop, l.ended = nil, nil
		l.mu.Unlock()
		close(ended)
	}
}

// pause stops the agent until resume.
func (l *centreLink) pause() {
	l.mu.Lock()
	l.paused = true
	stop, ended := l.stop, l.ended
	l.mu.Unlock()
	if stop != nil {
		stop()
		<-ended
	}
}

func (l *centreLink) resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paused = false
	close(l.changed)
	l.changed = make(chan struct{})
}

// wake has the agent look at the services at once: the policy came by hand, or the token is back.
func (l *centreLink) wake() {
	if l == nil {
		return
	}
	l.mu.Lock()
	agent := l.agent
	l.mu.Unlock()
	if agent != nil {
		agent.Wake()
	}
}

// use makes url the centre.
func (l *centreLink) use(url string) (*centre.Agent, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.agent != nil && l.url == url {
		return l.agent, nil
	}
	agent, err := l.newAgent(url)
	if err != nil {
		return nil, err
	}
	if l.agent != nil {
		l.agent.Close()
	}
	l.agent, l.url = agent, url
	clear(l.trouble)
	return agent, nil
}

// event takes what the agent tells: to the log, the record, and the status. What came onto the token
// goes to IKE at once.
func (l *centreLink) event(e centre.Event) {
	r := l.r
	detail := map[string]string{}
	if e.Service != "" {
		detail["service"] = e.Service
	}
	if e.Text != "" {
		detail["text"] = e.Text
	}
	what := "centre"
	if e.Service != "" {
		what = "service " + e.Service
	}
	kind, result := audit.EventCentre, audit.ResultInfo
	switch e.Code {
	case centre.EventPolicy:
		r.log.Info("policy fetched", zap.String("text", e.Text))
		return // its installation is on the record
	case centre.EventEnrolled, centre.EventRenewed:
		kind, result = audit.EventCertificate, audit.ResultOK
	case centre.EventRemoved:
		kind = audit.EventServiceLeft
	case centre.EventFailed:
		kind, result = audit.EventCentreFailed, audit.ResultFailed
		if e, ok := errors.AsType[*centre.Error](e.Err); ok && e.Code == centre.Refused {
			result = audit.ResultRefused
		}
		l.mu.Lock()
		l.trouble[e.Activity] = centreTrouble{centreError(e.Err), time.Now()}
		l.mu.Unlock()
	case centre.EventRecovered:
		kind = audit.EventCentreBack
		l.mu.Lock()
		delete(l.trouble, e.Activity)
		l.mu.Unlock()
	case centre.EventTidied, centre.EventForeignCA, centre.EventJournalLost, centre.EventCertRefused:
		detail["code"] = string(e.Code)
	}
	r.log.Info("centre", zap.String("event", string(e.Code)), zap.String("service", e.Service), zap.String("text", e.Text))
	r.record(audit.Record{Event: kind, What: what, Result: result, Detail: detail})
	if slices.Contains([]centre.EventCode{centre.EventEnrolled, centre.EventRenewed, centre.EventRemoved, centre.EventTidied}, e.Code) {
		r.refreshCredentials(context.Background())
		r.setPeers()
	}
}

// centreError gives an error of the agent the form that the operator sees.
func centreError(err error) *control.Error {
	out := &control.Error{Kind: control.KindUnavailable, Code: "centre-failed", Title: "The service provider's centre cannot help now", Detail: err.Error()}
	e, ok := errors.AsType[*centre.Error](err)
	if !ok {
		return out
	}
	out.Code = "centre-" + string(e.Code)
	if e.Reason != "" {
		out.Code += "-" + e.Reason
	}
	out.Detail, out.Hint = "expected "+e.Expected+", came "+e.Got, e.Do
	if e.Service != "" {
		out.Detail = "service " + e.Service + ": " + out.Detail
	}
	switch e.Code {
	case centre.Unreachable:
		out.Title = "The service provider's centre cannot be reached"
	case centre.TLS, centre.Redirect, centre.ContentType, centre.Malformed, centre.TooLarge:
		out.Title = "What answers is not the service provider's centre, or not as it should"
	case centre.ClockWrong:
		out.Title = "This machine's clock is wrong, or the centre's"
	case centre.DeviceCert, centre.TokenFailed:
		out.Kind, out.Title = control.KindToken, "The token cannot do what the centre needs"
	case centre.Refused:
		out.Kind, out.Title = control.KindRefused, "The service provider's centre refuses this device"
	case centre.NoPolicy, centre.Pending:
		out.Title = "The service provider's centre has nothing for this device yet"
	case centre.Busy, centre.TooSlow:
		out.Title = "The service provider's centre is busy"
	case centre.UntrustedCA, centre.BadCert:
		out.Kind, out.Title = control.KindRefused, "The certificate that the centre offers is refused"
	case centre.PolicyBad:
		out.Kind, out.Title = control.KindRefused, "The policy that the centre sent is refused"
	case centre.JournalError:
		out.Kind, out.Title = control.KindInternal, "The state directory cannot be written"
	}
	return out
}

// status describes the link for the operator; nil: there is no centre.
func (l *centreLink) status(ctx context.Context) (*control.CentreStatus, []control.Warning) {
	if l == nil {
		return nil, nil
	}
	l.mu.Lock()
	agent := l.agent
	s := &control.CentreStatus{URL: l.url}
	var warnings []control.Warning
	for _, t := range l.trouble {
		// Polls and reports fail together.
		if i := slices.IndexFunc(warnings, func(w control.Warning) bool { return w.Code == t.err.Code && w.Hint == t.err.Hint }); i >= 0 {
			continue
		}
		warnings = append(warnings, control.Warning{Code: t.err.Code, Title: t.err.Title, Text: t.err.Detail + " (since " + t.at.UTC().Format(time.RFC3339) + ")", Hint: t.err.Hint})
	}
	l.mu.Unlock()
	if agent == nil {
		return s, append(warnings, control.Warning{
			Code: "not-joined", Title: "This router has not joined its service provider's centre",
			Text: "certificates and policies are not kept up to date", Hint: "wardgate join URL, with the address that the service provider names",
		})
	}
	if st, err := agent.State(ctx); err == nil {
		s.Heard, s.Renewal = st.Heard, st.Renewal
	}
	return s, warnings
}
