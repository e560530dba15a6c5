package token

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"

	"wardgate/pkichip/chipproto"
)

// maxConcurrent bounds the requests that are worked on at once.
const maxConcurrent = 64

// Server answers the client's requests.
type Server struct {
	conn io.ReadWriter
	tok  *Token

	mu      sync.Mutex // orders writes; guards what follows
	greeted bool       // the client has said hello: events may be sent
	early   []*chipproto.Message
}

// NewServer makes a server for one conversation. Event is to be used as the token's Config.Event.
func NewServer(conn io.ReadWriter) *Server { return &Server{conn: conn} }

// Event sends an event to the client.
func (s *Server) Event(kind chipproto.EventKind, e *Error) {
	m := &chipproto.Message{Type: chipproto.TypeEvent, Event: kind, Text: clip(e.Text), Do: clip(e.Do), Code: e.Code, Tries: e.Tries, Source: e.Source}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.greeted {
		if len(s.early) < 16 {
			s.early = append(s.early, m)
		}
		return
	}
	_ = chipproto.Write(s.conn, m) // a client that is gone is seen by Serve
}

// clip bounds a text to what the protocol takes.
func clip(s string) string {
	if len(s) <= chipproto.MaxText {
		return s
	}
	return trim(s[:chipproto.MaxText-8]) + " …"
}

// Serve answers until the client closes the socket (nil) or breaks the protocol.
func (s *Server) Serve(t *Token) error {
	s.tok = t
	slots := make(chan struct{}, maxConcurrent)
	in := bufio.NewReader(s.conn) // one system call for a message, or for several
	for {
		m, err := chipproto.Read(in)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if m.Type&chipproto.ReplyBit != 0 || m.Type == chipproto.TypeEvent {
			return fmt.Errorf("%w: %v from the client", chipproto.ErrFrame, m.Type)
		}
		if m.Type == chipproto.TypePing { // without waiting for anything
			s.send(m, &chipproto.Message{})
			continue
		}
		select {
		case slots <- struct{}{}:
			go func() {
				defer func() { <-slots }()
				s.answer(m)
			}()
		default:
			s.send(m, failure(fail(chipproto.CodeBusy, fmt.Sprintf("%d requests are under way", maxConcurrent), "try again in a moment")))
		}
	}
}

func failure(e *Error) *chipproto.Message {
	code := e.Code
	if code == chipproto.OK {
		code = chipproto.CodeInternal
	}
	return &chipproto.Message{
		Code: code, Text: clip(e.Text), Do: clip(e.Do), RV: e.RV, Tries: e.Tries, Op: e.Op, Class: e.Class, Source: e.Source,
	}
}

func (s *Server) send(request, reply *chipproto.Message) {
	reply.Type, reply.ID = request.Type|chipproto.ReplyBit, request.ID
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := chipproto.Write(s.conn, reply); err != nil && errors.Is(err, chipproto.ErrFrame) {
		// The answer does not fit the protocol: say so instead.
		r := failure(fail(chipproto.CodeInternal, err.Error(), "delete what is not used on the token"))
		r.Type, r.ID = reply.Type, reply.ID
		_ = chipproto.Write(s.conn, r) // a client that is gone is seen by Serve
	}
	if request.Type == chipproto.TypeHello {
		s.greeted = true
		for _, m := range s.early {
			_ = chipproto.Write(s.conn, m)
		}
		s.early = nil
	}
}

func (s *Server) answer(m *chipproto.Message) {
	t := s.tok
	r := &chipproto.Message{}
	var err *Error
	switch m.Type { //nolint:exhaustive // Serve has sorted out replies, events and pings
	case chipproto.TypeHello:
		r.Module = clip(t.Module())
		r.Tokens = []chipproto.TokenInfo{t.Info()}
		s.send(m, r)
		if _, why := t.State(); why != nil {
			t.notice(why) // the client must know from the start
		}
		return
	case chipproto.TypeStatus:
		r.Tokens = []chipproto.TokenInfo{t.Info()}
		if _, why := t.State(); why != nil {
			r.Text = clip(why.Error())
		}
	case chipproto.TypeTokens:
		r.Tokens, err = t.Tokens()
	case chipproto.TypeList:
		if m.Layer == chipproto.LayerAuthority {
			r.Creds, err = t.Keys()
		} else {
			r.Creds, err = t.List()
		}
	case chipproto.TypeSign:
		r.Data, err = t.Sign(SignRequest{m.Layer, m.Service, m.KeyID, m.Scheme, m.Hash, int(m.Salt), m.Data})
	case chipproto.TypeGenerate:
		if m.Layer == chipproto.LayerAuthority {
			r.KeyID, r.Public, err = t.GenerateKey(m.Service, m.KeyType)
		} else {
			r.KeyID, r.Public, err = t.Generate(m.Layer, m.Service, m.KeyType)
		}
	case chipproto.TypeStore:
		if m.Layer == chipproto.LayerAuthority {
			err = fail(chipproto.CodeBadRequest, "certificates are stored in layers 1 and 2 alone", "keep an authority's certificate in its folder")
		} else {
			r.KeyID, err = t.Store(StoreRequest{m.Layer, m.Service, m.Cert, m.Chain, m.Anchors, m.CRLs, m.Replace})
		}
	case chipproto.TypeDelete:
		switch m.Layer {
		case chipproto.LayerService:
			err = t.Delete(m.Service, m.KeyID)
		case chipproto.LayerAuthority:
			err = t.DeleteKey(m.Service, m.KeyID)
		case chipproto.LayerDevice:
			err = fail(chipproto.CodeBadRequest, "layer 1 is not deleted", "initialise the token to start anew")
		}
	case chipproto.TypeInitToken:
		var i chipproto.TokenInfo
		i, err = t.Init(m.Label, m.Replace)
		r.Tokens = []chipproto.TokenInfo{i}
	case chipproto.TypeMechanisms:
		r.KeyTypes, err = t.KeyTypes()
	default:
		err = fail(chipproto.CodeBadRequest, m.Type.String()+" is no request", "")
	}
	if err != nil {
		r = failure(err)
	}
	s.send(m, r)
}
