package sp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"wardgate/internal/certs"
	"wardgate/sp/est"
	"wardgate/sp/registry"
	"wardgate/sp/store"
)

const (
	maxReport    = 256 << 10        // octets of a device's report
	sendTimeout  = 60 * time.Second // for a device to take an answer
	queryTimeout = 15 * time.Second
	reportEvery  = 100 * time.Millisecond // reports of that long share a write
	retryAfter   = 10                     // seconds

	logWaits = "a device waits for a policy"
)

// api answers devices: GET /v1/policy, POST /v1/report.
type api struct {
	*Centre
	hub     *hub
	events  *events
	reports chan reported
	limits  *limits
	closing <-chan struct{} // closed: nobody waits any more
}

// reported is a report on its way to the database.
type reported struct {
	store.Report
	done chan<- error
}

func (a *api) refuse(w http.ResponseWriter, r *http.Request, device string, f *refusal) {
	what := r.Method + " " + r.URL.Path
	if f.cause != nil && r.Context().Err() != nil {
		a.log.Debug("a client left before it was answered", "what", certs.Quote(what), "device", device)
	} else if f.cause != nil {
		a.log.Error("a request failed", "what", certs.Quote(what), "device", device, "error", f.cause)
	} else if !f.quiet {
		who := device
		if who == "" && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			who = certs.SubjectOf(r.TLS.PeerCertificates[0])
		}
		a.events.put(store.Event{Event: "request-refused", Who: who, What: what, Where: r.RemoteAddr, Result: store.ResultRefused, Detail: map[string]string{"code": f.Code, "expected": f.Expected, "came": f.Came}})
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	if f.retry > 0 {
		h.Set("Retry-After", strconv.Itoa(f.retry))
	} else if f.Status == http.StatusServiceUnavailable || f.Status == http.StatusNotFound {
		h.Set("Retry-After", strconv.Itoa(retryAfter))
	}
	body, err := json.Marshal(f)
	if err != nil {
		a.log.Error("a refusal cannot be told", "error", err)
	}
	a.answer(w, f.Status, body)
}

// answer sends an answer; the device has its time to take it, however long it waited before.
func (a *api) answer(w http.ResponseWriter, status int, body []byte) {
	// The clock that policies and certificates are made by: devices compare theirs with it.
	w.Header().Set("Date", a.now().UTC().Format(http.TimeFormat))
	// By the machine's clock, which is the connection's. A recorder in a test has no deadline.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(sendTimeout))
	if status != http.StatusNotModified && status != http.StatusNoContent {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // a device that is gone asks again
}

// preferredWait reads Prefer: wait=SECONDS (RFC 7240, section 4.3). A preference that makes no sense
// is ignored (section 2).
func preferredWait(h http.Header, longest time.Duration) (wait time.Duration, there bool) {
	for _, line := range h.Values("Prefer") {
		for _, p := range strings.Split(line, ",") {
			p, _, _ = strings.Cut(p, ";")
			name, value, _ := strings.Cut(p, "=")
			if there || !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue // the first one counts
			}
			n, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(value), `"`), 10, 31)
			if err == nil {
				wait, there = min(time.Duration(n)*time.Second, longest), true
			}
		}
	}
	return wait, there
}

// etag names a policy: its serial number, and the file's hash.
func etag(h *store.PolicyHead) string { return fmt.Sprintf(`"%d-%.16s"`, h.Serial, h.JWSHash) }

// matches reports whether If-None-Match has an entity tag (RFC 9110, section 13.1.2).
func matches(r *http.Request, tag string) bool {
	for _, line := range r.Header.Values("If-None-Match") {
		for _, t := range strings.Split(line, ",") {
			if t = strings.TrimPrefix(strings.TrimSpace(t), "W/"); t == tag {
				return true
			}
		}
	}
	return false
}

// servePolicy answers with the device's newest policy: at once when it is another than the one that the
// device has (If-None-Match), otherwise as soon as there is one, or with 304 when the wait is over.
func (a *api) servePolicy(w http.ResponseWriter, r *http.Request) {
	d := a.admit(w, r, a.limits.policies)
	if d == nil {
		return
	}
	wait, waits := preferredWait(r.Header, time.Duration(a.cfg.Limits.Wait))
	if waits {
		w.Header().Set("Preference-Applied", "wait="+strconv.Itoa(int(wait/time.Second)))
	}
	// Seated before looking: what comes between wakes.
	s := a.hub.sit(d.Name)
	if s == nil {
		a.refuse(w, r, d.Name, refuse(http.StatusServiceUnavailable, "too-many-waiting", "fewer devices waiting than the limit", "one more", "ask again later, or another instance"))
		return
	}
	defer a.hub.leave(s)
	// The server's limits are for requests that are answered at once.
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{})
	_ = rc.SetWriteDeadline(time.Time{})
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for last := !waits || wait == 0; ; {
		done, f := a.tryPolicy(w, r, d.Name, last)
		if f != nil {
			a.refuse(w, r, d.Name, f)
		}
		if f != nil || done {
			return
		}
		a.log.Debug(logWaits, "device", s.device)
		select {
		case <-s.wake:
			// It may be a revocation.
			if d, f = a.ask(r); f != nil {
				a.refuse(w, r, s.device, f)
				return
			}
		case <-r.Context().Done():
			return // the device is gone
		case <-timer.C:
			last = true
		case <-s.gone:
			last = true
		case <-a.closing:
			w.Header().Set("Connection", "close")
			last = true
		}
	}
}

// admit says which device asks. Nil: it was refused, because of who it is, or because it asks too often.
func (a *api) admit(w http.ResponseWriter, r *http.Request, of *est.Limiter) *registry.Device {
	d, f := a.ask(r)
	if f != nil {
		a.refuse(w, r, "", a.limits.stranger(r, f, a.now()))
		return nil
	}
	if f := a.limits.allow(of, d.Name, a.now()); f != nil {
		a.refuse(w, r, d.Name, f)
		return nil
	}
	return d
}

func (a *api) ask(r *http.Request) (*registry.Device, *refusal) {
	ctx, cancel := context.WithTimeout(r.Context(), queryTimeout)
	defer cancel()
	return a.identify(ctx, r.TLS)
}

// tryPolicy answers when there is something new, or when it is the last look.
func (a *api) tryPolicy(w http.ResponseWriter, r *http.Request, device string, last bool) (bool, *refusal) {
	ctx, cancel := context.WithTimeout(r.Context(), queryTimeout)
	defer cancel()
	head, err := a.st.LatestHead(ctx, device)
	switch {
	case errors.Is(err, store.ErrNotFound) && last:
		return true, refuse(http.StatusNotFound, "no-policy", "a policy for "+device, "none yet", "wait: it is made as soon as the registry says what it may do")
	case errors.Is(err, store.ErrNotFound):
		return false, nil
	case err != nil:
		return true, failure(err)
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if matches(r, etag(&head)) {
		if last {
			h.Set("ETag", etag(&head))
			a.answer(w, http.StatusNotModified, nil)
		}
		return last, nil
	}
	p, err := a.st.Latest(ctx, device)
	if err != nil {
		return true, failure(err)
	}
	h.Set("ETag", etag(&p.PolicyHead))
	h.Set("Content-Type", "application/jose") // RFC 7515, section 9.2.1
	a.answer(w, http.StatusOK, p.JWS)
	return true, nil
}

// reportBody is what a device tells.
type reportBody struct {
	Version      string                  `json:"version"`
	PolicySerial uint64                  `json:"policy_serial"`
	NotAfter     time.Time               `json:"not_after,omitzero"`
	Connections  []store.ConnectionState `json:"connections,omitempty"`
	Errors       []store.ReportedError   `json:"errors,omitempty"`
}

// serveReport takes a device's report.
func (a *api) serveReport(w http.ResponseWriter, r *http.Request) {
	d := a.admit(w, r, a.limits.reports)
	if d == nil {
		return
	}
	if f := a.takeReport(w, r, d.Name); f != nil {
		a.refuse(w, r, d.Name, f)
		return
	}
	a.answer(w, http.StatusNoContent, nil)
}

func (a *api) takeReport(w http.ResponseWriter, r *http.Request, device string) *refusal {
	if kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); !strings.EqualFold(strings.TrimSpace(kind), "application/json") {
		return refuse(http.StatusUnsupportedMediaType, "bad-type", "Content-Type application/json", certs.Quote(r.Header.Get("Content-Type")), "")
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxReport))
	dec.DisallowUnknownFields()
	var b reportBody
	err := dec.Decode(&b)
	if err == nil {
		if _, e := dec.Token(); !errors.Is(e, io.EOF) {
			err = errors.New("more than one value")
		}
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return refuse(http.StatusRequestEntityTooLarge, "too-large", fmt.Sprintf("at most %d octets", maxReport), "more", "tell the latest errors only")
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return refuse(http.StatusRequestTimeout, "too-slow", "the whole report in time", "a part of it", "check the connection, then tell it again")
	}
	if err != nil {
		return refuse(http.StatusBadRequest, "malformed", "a report (docs/sp.md)", certs.Quote(err.Error()), "")
	}
	done := make(chan error, 1)
	rep := reported{store.Report{Device: device, Seen: a.now(), Version: b.Version, PolicySerial: b.PolicySerial, NotAfter: b.NotAfter, Connections: b.Connections, Errors: b.Errors}, done}
	ctx, cancel := context.WithTimeout(r.Context(), queryTimeout)
	defer cancel()
	select {
	case a.reports <- rep:
	case <-ctx.Done():
		return failure(ctx.Err())
	}
	select {
	case err = <-done:
	case <-ctx.Done():
		return failure(ctx.Err())
	}
	switch {
	case errors.Is(err, store.ErrInvalid):
		return refuse(http.StatusBadRequest, "malformed", "a report (docs/sp.md)", certs.Quote(err.Error()), "")
	case err != nil:
		return failure(err)
	}
	return nil
}

// keepReports writes reports, those of a short time together, until its context ends.
func (a *api) keepReports(ctx context.Context) {
	for {
		var list []reported
		select {
		case r := <-a.reports:
			list = append(list, r)
		case <-ctx.Done():
			return
		}
		t := time.NewTimer(reportEvery)
	collect:
		for len(list) < store.MaxBatch {
			select {
			case r := <-a.reports:
				list = append(list, r)
			case <-t.C:
				break collect
			case <-ctx.Done():
				break collect
			}
		}
		t.Stop()
		a.putReports(context.WithoutCancel(ctx), list)
	}
}

func (a *api) putReports(ctx context.Context, list []reported) {
	all := make([]store.Report, len(list))
	for i := range list {
		all[i] = list[i].Report
	}
	err := a.st.PutReports(ctx, all)
	for i := range list {
		own := err
		if errors.Is(err, store.ErrInvalid) && len(list) > 1 {
			// One bad report is not the others' fault.
			own = a.st.PutReports(ctx, all[i:i+1])
		}
		list[i].done <- own
	}
}
