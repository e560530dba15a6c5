package sp_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"wardgate/sp/registry/registrytest"
	"wardgate/sp/store/storetest"
)

// A device that asks too often is told when to come back; others are answered, and so is the same one
// later. The record does not grow with every knock.
func TestLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	w.cfg.Limits.Burst, w.cfg.Limits.Requests = 5, 0.5
	i := w.start()
	i.apply()
	a, b := w.devices[devA], w.devices[devB]
	_, tag := i.policy(a, "")
	poll := func() *reply { return i.poll(&a.tls, tag, "0") }
	json := http.Header{"Content-Type": {"application/json"}}
	report := func() *reply { return i.do(&a.tls, http.MethodPost, "/v1/report", json, []byte("{}")) }
	for n := range 4 { // one was used
		if r := poll(); r.status != http.StatusNotModified {
			t.Fatalf("poll %d: %d %s", n, r.status, r.body)
		}
	}
	for range 3 {
		r := poll()
		if r.status != http.StatusTooManyRequests || r.problem(t) != "too-many" || r.header.Get("Retry-After") != "2" {
			t.Errorf("beyond the limit: %d %s, Retry-After %q", r.status, r.body, r.header.Get("Retry-After"))
		}
	}
	for n := range 5 {
		if r := report(); r.status != http.StatusNoContent {
			t.Errorf("report %d: %d %s", n, r.status, r.body)
		}
	}
	if r := report(); r.status != http.StatusTooManyRequests {
		t.Errorf("reports beyond the limit: %d", r.status)
	}
	if r := i.poll(&b.tls, "", "0"); r.status == http.StatusTooManyRequests {
		t.Error("another device pays for it")
	}
	i.recorded("request-refused", "too-many")
	n := 0
	for _, e := range must(i.Store().Entries(w.context(), 0, 0))(t) {
		if e.Detail["code"] == "too-many" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d entries on the record, want 1", n)
	}
	w.pass(2 * time.Second)
	if r := poll(); r.status != http.StatusNotModified {
		t.Errorf("later: %d %s", r.status, r.body)
	}
}

// Strangers of one address are refused without a word on the record when they are too many; devices at the
// same address are answered.
func TestStrangersAreLimited(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	i := w.start()
	i.apply()
	i.policy(w.devices[devA], "")
	stranger := newDevice(t, registrytest.DeviceCA(t), "stranger.devices.example")
	client := w.client(&stranger.tls)
	many := 0
	for n := 0; many == 0 && n < 1000; n++ {
		r := must(http.NewRequestWithContext(w.context(), http.MethodGet, "https://"+i.addr+"/v1/policy", nil))(t)
		res := must(client.Do(r))(t)
		must(io.Copy(io.Discard, res.Body))(t)
		res.Body.Close()
		switch res.StatusCode {
		case http.StatusForbidden:
		case http.StatusTooManyRequests:
			many++
			if n < 100 || res.Header.Get("Retry-After") == "" {
				t.Errorf("after %d, Retry-After %q", n, res.Header.Get("Retry-After"))
			}
		default:
			t.Fatalf("%d: %s", n, res.Status)
		}
	}
	if many == 0 {
		t.Error("nobody is ever limited")
	}
	if r := i.poll(&w.devices[devA].tls, "", "0"); r.status != http.StatusOK {
		t.Errorf("a device at the same address: %d %s", r.status, r.body)
	}
}

// Clients that send slowly or too much are let go, and the server goes on.
func TestSlowAndOversized(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	i := w.start()
	i.apply()
	a := w.devices[devA]
	i.policy(a, "")
	dial := func() *tls.Conn {
		cfg := &tls.Config{RootCAs: w.roots, ServerName: "localhost", MinVersion: tls.VersionTLS13, Time: w.Now, Certificates: []tls.Certificate{a.tls}}
		c := must((&tls.Dialer{Config: cfg}).DialContext(w.context(), "tcp", i.addr))(t).(*tls.Conn)
		t.Cleanup(func() { _ = c.Close() })
		if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	// A header that never ends, one line now and then (slow loris): the server hangs up.
	loris := dial()
	fmt.Fprintf(loris, "GET /v1/policy HTTP/1.1\r\nHost: localhost\r\n")
	ended := make(chan error, 1)
	go func() {
		_, err := loris.Read(make([]byte, 1))
		ended <- err
	}()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("an answer to half a header")
			}
		case <-tick.C:
			_, _ = fmt.Fprintf(loris, "X-%d: y\r\n", n) // the server may have hung up
			continue
		}
		break
	}
	// A body that is announced and does not come.
	slow := dial()
	fmt.Fprintf(slow, "POST /v1/report HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
	if res, err := http.ReadResponse(bufio.NewReader(slow), nil); err == nil {
		defer res.Body.Close()
		if res.StatusCode < 400 {
			t.Errorf("half a report: %s", res.Status)
		}
	}
	// Headers and paths beyond all bounds.
	for name, text := range map[string]string{
		"header": "GET /v1/policy HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n",
		"path":   "GET /" + strings.Repeat("x", 64<<10) + " HTTP/1.1\r\nHost: localhost\r\n\r\n",
	} {
		c := dial()
		go func() { _, _ = io.WriteString(c, text) }() // the server answers before it is through
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err == nil {
			res.Body.Close()
			if res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("%s: %s", name, res.Status)
			}
		}
	}
	if _, err := i.Store().Report(w.context(), devA); err == nil {
		t.Error("half a report was taken")
	}
	if r := i.poll(&a.tls, "", "0"); r.status != http.StatusOK {
		t.Errorf("after all that: %d %s", r.status, r.body)
	}
}
