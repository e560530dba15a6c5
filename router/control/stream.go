package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Limits of joining, which tells its steps as they are done and may take as long as the network does.
const (
	maxJoin     = 10 * time.Minute
	maxJoinLine = 64 << 10
)

// joinLine is one line of the answer to POST /v1/join: a step, or how it ended.
type joinLine struct {
	Step  *JoinStep `json:"step,omitempty"`
	Done  bool      `json:"done,omitempty"`
	Error *Error    `json:"error,omitempty"`
}

// join answers POST /v1/join with a line of JSON for each step (application/x-ndjson). The last line
// says that it is done, or why not; an answer without one was broken off.
func (s *Server) join(w http.ResponseWriter, r *http.Request) {
	var req JoinRequest
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxQuestion))
	if err == nil {
		err = decodeStrict(body, &req)
	}
	if err != nil {
		s.fail(w, r, &Error{Kind: KindInvalid, Code: "json", Title: "The request is not what was expected", Detail: err.Error(), Hint: "see docs/control-api.md"})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), maxJoin)
	defer cancel()
	out := http.NewResponseController(w)
	if err := errors.Join(out.SetWriteDeadline(time.Now().Add(maxJoin+requestTime)), out.SetReadDeadline(time.Now().Add(maxJoin+requestTime))); err != nil {
		s.opt.Log("control API: no longer deadline", "error", err.Error())
	}
	steps := make(chan JoinStep)
	ended := make(chan error, 1)
	go func() {
		ended <- s.opt.Backend.Join(ctx, req, func(x JoinStep) {
			select {
			case steps <- x:
			case <-ctx.Done():
			}
		})
		close(steps)
	}()
	begun := false
	line := func(l joinLine) {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "application/x-ndjson")
			w.WriteHeader(http.StatusOK)
		}
		data, err := json.Marshal(l)
		if err == nil {
			_, err = w.Write(append(data, '\n'))
		}
		if err = errors.Join(err, out.Flush()); err != nil {
			s.opt.Log("control API: caller went away", "error", err.Error())
			cancel() // nobody looks any more; what was begun can be repeated
		}
	}
	for x := range steps {
		line(joinLine{Step: &x})
	}
	err = <-ended
	if err != nil && !begun {
		s.fail(w, r, err)
		return
	}
	if err != nil {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			e = &Error{Kind: KindInternal, Code: "internal", Title: "That did not work", Detail: err.Error(), Hint: "see the daemon's log"}
		}
		line(joinLine{Error: e})
		return
	}
	line(joinLine{Done: true})
}

// Join implements Backend. It ends with ctx; what the daemon has begun can be repeated at any time.
func (c *Client) Join(ctx context.Context, req JoinRequest, step func(JoinStep)) error {
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	resp, err := c.send(ctx, http.MethodPost, "/v1/join", body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return answered(resp)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxJoinLine)
	for lines.Scan() {
		var l joinLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return fmt.Errorf("control: the daemon's answer is not what was expected: %w", err)
		}
		switch {
		case l.Error != nil:
			return l.Error
		case l.Done:
			return nil
		case l.Step != nil:
			step(*l.Step)
		}
	}
	err = lines.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("%w: the answer broke off: %w", ErrUnreachable, err)
}
