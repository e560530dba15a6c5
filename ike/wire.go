package ike

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// The exchanges and notifies as the state machine names them.
const (
	exchangeSAInit        = uint8(message.ExchangeIKESAInit)
	exchangeAuth          = uint8(message.ExchangeIKEAuth)
	exchangeCreateChild   = uint8(message.ExchangeCreateChildSA)
	exchangeInformational = uint8(message.ExchangeInformational)
	exchangeIntermediate  = uint8(message.ExchangeIKEIntermediate)
	exchangeFollowupKE    = uint8(message.ExchangeIKEFollowupKE)
	exchangeResume        = uint8(message.ExchangeIKESessionResume)

	// A key exchange value that is none, once the IKE SA stands: no new SA comes of it. INVALID_SYNTAX would
	// end the IKE SA at both ends (RFC 7296, sections 2.21.3 and 3.10.1).
	notifyBadKE = message.NotifyNoProposalChosen

	flagInitiator = uint8(message.FlagInitiator)
	flagResponse  = uint8(message.FlagResponse)

	notifyUnsupportedCritical = message.NotifyUnsupportedCriticalPayload
	notifyInvalidSyntax       = message.NotifyInvalidSyntax
	notifyNoProposal          = message.NotifyNoProposalChosen
	notifyInvalidKE           = message.NotifyInvalidKEPayload
	notifyAuthFailed          = message.NotifyAuthenticationFailed
	notifyTSUnacceptable      = message.NotifyTSUnacceptable
	notifyTemporaryFailure    = message.NotifyTemporaryFailure
	notifyChildNotFound       = message.NotifyChildSANotFound
	notifyNoAdditionalSAs     = message.NotifyNoAdditionalSAs
	notifyTSMaxQueue          = message.NotifyTSMaxQueue
	notifyResourceInfo        = message.NotifySAResourceInfo
	notifyStateNotFound       = message.NotifyStateNotFound
	notifyAdditionalKE        = message.NotifyAdditionalKeyExchange
	notifyIntermediate        = message.NotifyIntermediateExchangeSupported
)

func exchangeName(x uint8) string { return message.ExchangeType(x).String() }

// parsed is a message by what it means: each payload that may stand once at its name.
type parsed struct {
	id       uint32
	exchange uint8
	from     *Path // where a request came from
	head     message.Header
	inner    message.Inner // head and inner of a protected message
	ps       message.Payloads

	sa       []suite.Offer // nil: no SA payload
	ke       *message.KE
	nonce    []byte
	idi, idr *message.ID
	certs    []*message.Cert
	wantOCSP bool // RFC 4806
	auth     *message.Auth
	tsi, tsr *message.TS
	cp       *message.CP
	notifies []*message.Notify
	deletes  []*message.Delete
}

// criticalPayload returns the type of the unknown payload with the critical flag that err is
// about (RFC 7296, section 2.5).
func criticalPayload(err error) (uint8, bool) {
	if e, ok := errors.AsType[*message.UnsupportedCriticalError](err); ok {
		return uint8(e.Type), true
	}
	return 0, false
}

// errDuplicate is a payload that may stand only once and came twice.
var errDuplicate = errors.New("ike: a payload that may stand once came twice")

// sort files the payloads of a message under their meaning. What this package does not use is
// left out; a second payload of a kind that may stand once is an error.
func sort(ps message.Payloads) (*parsed, error) {
	in := &parsed{ps: ps}
	once := func(seen bool, p message.Payload) error {
		if seen {
			return fmt.Errorf("%w: %v", errDuplicate, p.PayloadType())
		}
		return nil
	}
	for _, p := range ps {
		var err error
		switch p := p.(type) {
		case *message.SA:
			err = once(in.sa != nil, p)
			in.sa = offersOf(p)
		case *message.KE:
			err = once(in.ke != nil, p)
			in.ke = p
		case *message.Nonce:
			err = once(in.nonce != nil, p)
			in.nonce = p.Data
		case *message.ID:
			if p.Responder {
				err = once(in.idr != nil, p)
				in.idr = p
			} else {
				err = once(in.idi != nil, p)
				in.idi = p
			}
		case *message.Cert:
			in.certs = append(in.certs, p)
		case *message.CertReq:
			in.wantOCSP = in.wantOCSP || p.Encoding == message.CertOCSP
		case *message.Auth:
			err = once(in.auth != nil, p)
			in.auth = p
		case *message.CP:
			err = once(in.cp != nil, p)
			in.cp = p
		case *message.TS:
			if p.Responder {
				err = once(in.tsr != nil, p)
				in.tsr = p
			} else {
				err = once(in.tsi != nil, p)
				in.tsi = p
			}
		case *message.Notify:
			in.notifies = append(in.notifies, p)
		case *message.Delete:
			in.deletes = append(in.deletes, p)
		}
		if err != nil {
			return nil, err
		}
	}
	return in, nil
}

func (in *parsed) notify(t message.NotifyType) *message.Notify {
	for _, n := range in.notifies {
		if n.Type == t {
			return n
		}
	}
	return nil
}

func (in *parsed) has(t message.NotifyType) bool { return in.notify(t) != nil }

// errorNotify returns the first error notify of an answer.
func (in *parsed) errorNotify() *message.Notify {
	for _, n := range in.notifies {
		if n.Type.IsError() {
			return n
		}
	}
	return nil
}

func peerError(n *message.Notify, exchange string) *PeerNotifyError {
	return &PeerNotifyError{Type: uint16(n.Type), Name: n.Type.String(), Exchange: exchange}
}

// outgoing is a message that is being put together.
type outgoing struct{ ps message.Payloads }

func newOutgoing() *outgoing { return &outgoing{} }

func (o *outgoing) add(p ...message.Payload) *outgoing {
	o.ps = append(o.ps, p...)
	return o
}

func (o *outgoing) notify(t message.NotifyType, data []byte) *outgoing {
	return o.add(message.NewNotify(t, data...))
}

func (o *outgoing) has(t message.NotifyType) bool { return o.ps.HasNotify(t) }

func (o *outgoing) offers(offers ...suite.Offer) *outgoing {
	sa := &message.SA{}
	for _, f := range offers {
		p := message.Proposal{Number: f.Number, Protocol: message.ProtocolID(f.Protocol), SPI: f.SPI}
		for _, t := range f.Transforms {
			p.Transforms = append(p.Transforms, message.NewTransform(message.TransformType(t.Type), t.ID, t.KeyBits))
		}
		sa.Proposals = append(sa.Proposals, p)
	}
	return o.add(sa)
}

func (o *outgoing) ke(method uint16, data []byte) *outgoing {
	return o.add(&message.KE{Method: message.KEMethod(method), Data: data})
}

func (o *outgoing) nonce(n []byte) *outgoing { return o.add(&message.Nonce{Data: n}) }

func (o *outgoing) ts(tsi, tsr []Selector) *outgoing {
	return o.add(message.NewTSi(toWire(tsi)...), message.NewTSr(toWire(tsr)...))
}

func offersOf(p *message.SA) []suite.Offer {
	out := make([]suite.Offer, 0, len(p.Proposals))
	for _, q := range p.Proposals {
		f := suite.Offer{Number: q.Number, Protocol: uint8(q.Protocol), SPI: bytes.Clone(q.SPI)} // it stays with the SA: not the whole message
		for _, t := range q.Transforms {
			bits, known := t.KeyBits()
			if !known {
				bits = -1
			}
			f.Transforms = append(f.Transforms, suite.TransformSpec{Type: uint8(t.Type), ID: t.ID, KeyBits: bits})
		}
		out = append(out, f)
	}
	return out
}

func toWire(ts []Selector) []message.Selector {
	out := make([]message.Selector, len(ts))
	for i, s := range ts {
		out[i] = message.NewSelector(s.Proto, s.StartPort, s.EndPort, s.Start, s.End)
	}
	return out
}

// fromWire returns the selectors that are address ranges; others cannot be narrowed to anything
// we have.
func fromWire(p *message.TS) []Selector {
	var out []Selector
	for _, s := range p.Selectors {
		if !s.IsRange() {
			continue
		}
		t := Selector{Proto: s.Protocol, StartPort: s.StartPort, EndPort: s.EndPort, Start: s.Start, End: s.End}
		if t.check() == nil {
			out = append(out, t)
		}
	}
	return out
}

func identityOf(p *message.ID) Identity { return Identity{IDType(p.Type), string(p.Data)} }

func (id Identity) payload(responder bool) *message.ID {
	return &message.ID{Responder: responder, Type: message.IDType(id.Type), Data: []byte(id.Data)}
}

func spiBytes(v uint64) (s message.SPI) {
	binary.BigEndian.PutUint64(s[:], v)
	return s
}

func spi4(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// joinOffers prints what a peer offered.
func joinOffers(offers []suite.Offer) string {
	if len(offers) == 0 {
		return "(none)"
	}
	var s []string
	for i, o := range offers {
		if i == 8 {
			s = append(s, fmt.Sprintf("… %d more", len(offers)-i))
			break
		}
		s = append(s, o.String())
	}
	return strings.Join(s, ", ")
}

func hasOffer(list []suite.Proposal, c suite.Chosen) bool {
	// A choice is allowed by a set of proposals when answering it would choose the same.
	got, err := suite.Select(list, []suite.Offer{c.Answer(nil)}, suite.SelectOptions{})
	return err == nil && slices.Equal(got.Transforms, c.Transforms)
}
