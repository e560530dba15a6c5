package control

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"

	"wardgate/internal/localsocket"
)

// DecodeFlow is decodeFlow, for the fuzz target.
var DecodeFlow = decodeFlow

// Routes lists the routes as "METHOD /path".
func Routes() []string {
	var out []string
	for _, r := range routes {
		out = append(out, r.method+" "+r.path)
	}
	return out
}

// KindStatus maps every kind to its HTTP status.
func KindStatus() map[Kind]int {
	out := map[Kind]int{}
	for _, k := range []Kind{KindInvalid, KindDenied, KindNotFound, KindRefused, KindTooLarge, KindToken, KindInternal, KindUnavailable, KindTimeout} {
		out[k] = k.status()
	}
	return out
}

// HandlerForFuzz returns a function that asks the server without a socket.
func HandlerForFuzz(b Backend) func(method, target string, body []byte) (int, []byte, bool) {
	s := &Server{opt: ServerOptions{Backend: b, Log: func(string, ...any) {}}, gid: -1, own: uint32(os.Geteuid()), busy: make(chan struct{}, maxRequests)}
	h := s.handler()
	return func(method, target string, body []byte) (int, []byte, bool) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(method + " " + target + " HTTP/1.1\r\nHost: x\r\n\r\n")))
		if err != nil {
			return 0, nil, false
		}
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r.WithContext(localsocket.WithPeer(context.Background(), &localsocket.Peer{UID: s.own})))
		return w.Code, w.Body.Bytes(), true
	}
}
