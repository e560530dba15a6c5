package message_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"

	"wardgate/ike/message"
)

func TestSummary(t *testing.T) {
	h := message.Header{Exchange: message.ExchangeIKEAuth, Flags: message.FlagInitiator, MessageID: 1}
	ps := build(t, "IDi CERT CERTREQ AUTH SA TSi TSr")
	ps = append(ps[:3:3], append(message.Payloads{message.NewNotify(message.NotifyMultipleAuthSupported)}, ps[3:]...)...)
	const want = "IKE_AUTH request 1 [ IDi CERT CERTREQ N(MULT_AUTH) AUTH SA TSi TSr ]"
	if got := h.Summary(ps); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	m := &message.Message{Header: h, Encrypted: &message.Encrypted{}}
	if got := m.Summary(ps); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for _, c := range []struct {
		m     *message.Message
		inner message.Payloads
		want  string
	}{
		{m, nil, "IKE_AUTH request 1 [ SK ]"},
		{m, message.Payloads{}, "IKE_AUTH request 1 [ ]"},
		{&message.Message{Header: h.Response(), Encrypted: &message.Encrypted{Number: 2, Total: 3}}, nil, "IKE_AUTH response 1 [ SKF(2/3) ]"},
		{
			&message.Message{Header: message.Header{Exchange: 99}, Payloads: build(t, "No D V CP EAP PS N(ERROR)")}, nil,
			"ExchangeType(99) request 0 [ No D V CP(REQ) EAP(REQ) PS N(NotifyType(8191)) ]",
		},
	} {
		if got := c.m.Summary(c.inner); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestSafeText(t *testing.T) {
	for in, want := range map[string]string{
		"b.devices.example":                     "b.devices.example",
		"Klinik Süd":                            "Klinik Süd",
		"a\nMay 1 root: accepted":               `a\nMay 1 root: accepted`,
		"\x1b[2Jgone":                           `\x1b[2Jgone`,
		"nul\x00, del\x7f, c1\u009b":            `nul\x00, del\x7f, c1\u009b`,
		"\u202egnp.exe \u2028 \ufeff":           `\u202egnp.exe \u2028 \ufeff`,
		"\xff\xc0\x80":                          `\xff\xc0\x80`,
		`back\slash`:                            `back\\slash`,
		"quote ' and \"":                        `quote ' and "`,
		"no-break\u00a0space":                   `no-break\u00a0space`,
		"\U000e0041 tag":                        `\U000e0041 tag`,
		strings.Repeat("x", 300):                strings.Repeat("x", 256) + "…",
		strings.Repeat("x", 255) + "\u00fc and": strings.Repeat("x", 255) + `\xc3…`,
		"":                                      "",
	} {
		if got := message.SafeText([]byte(in)); got != want {
			t.Errorf("SafeText(%q) = %q, want %q", in, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.SliceOf(rapid.Byte()).Draw(t, "text")
		got := message.SafeText(in)
		if !utf8.ValidString(got) {
			t.Fatalf("%q is no UTF-8", got)
		}
		for _, c := range got {
			if !unicode.IsPrint(c) {
				t.Fatalf("%q holds %U", got, c)
			}
		}
		if len(in) <= 256 && bytes.IndexFunc(in, func(c rune) bool { return c < ' ' || c > '~' || c == '\\' }) < 0 && got != string(in) {
			t.Fatalf("%q was changed to %q", in, got)
		}
	})
}

// The errors and the names that hold a peer's text are safe to log.
func TestIDString(t *testing.T) {
	for _, c := range []struct {
		id   *message.ID
		want string
	}{
		{message.NewIDi(message.IDFQDN, []byte("a.example\r\n")), `a.example\r\n`},
		{message.NewIDr(message.IDRFC822Addr, []byte("ü@example")), "ü@example"},
		{message.NewIDi(message.IDIPv4Addr, []byte{10, 0, 0, 1}), "10.0.0.1"},
		{message.NewIDi(message.IDIPv4Addr, []byte{10}), "ID_IPV4_ADDR:0a"},
		{message.NewIDi(message.IDIPv6Addr, netip.MustParseAddr("2001:db8::1").AsSlice()), "2001:db8::1"},
		{message.NewIDi(message.IDKeyID, []byte{1, 2}), "ID_KEY_ID:0102"},
		{message.NewIDi(77, []byte{1, 2}), "IDType(77):0102"},
		{message.NewIDi(message.IDDERASN1DN, make([]byte, 5000)), "ID_DER_ASN1_DN:" + strings.Repeat("00", 256)},
	} {
		if got := c.id.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestStrings(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.0"), netip.MustParseAddr("10.0.0.255")
	p := message.Proposal{Protocol: message.ProtocolESP, Transforms: []message.Transform{
		message.NewTransform(message.TransformENCR, uint16(message.EncrAESGCM16), 256),
		message.NewTransform(message.TransformPRF, uint16(message.PRFHMACSHA2384), 0),
		message.NewTransform(message.TransformINTEG, uint16(message.IntegHMACSHA2256128), 0),
		message.NewTransform(message.TransformKE, uint16(message.KECurve25519), 0),
		message.NewTransform(message.TransformADDKE1, uint16(message.KEMLKEM768), 0),
		message.NewTransform(message.TransformSN, uint16(message.SNSequential32), 0),
		message.NewTransform(99, 7, 0),
		{Type: message.TransformENCR, ID: 12, Attributes: []message.Attribute{{Type: 1}}},
	}}
	for got, want := range map[string]string{
		p.String(): "ESP:ENCR_AES_GCM_16-256/PRF_HMAC_SHA2_384/AUTH_HMAC_SHA2_256_128/Curve25519/ADDKE1:ml-kem-768/NO_ESN/TransformType(99):7/ENCR_AES_CBC-?",
		message.NewSelector(0, 0, 65535, a, b).String():                                      "10.0.0.0-10.0.0.255",
		message.NewSelector(6, 104, 104, a, b).String():                                      "10.0.0.0-10.0.0.255[6/104-104]",
		message.NewSelector(6, 65535, 0, a, b).String():                                      "10.0.0.0-10.0.0.255[6/OPAQUE]",
		message.Selector{Type: 10}.String():                                                  "TS_SECLABEL",
		(&message.PeerError{Type: 38}).Error():                                               "peer answered TS_UNACCEPTABLE",
		(&message.UnsupportedCriticalError{Type: 200}).Error():                               "message: payload type 200 is unknown and critical; the message must be rejected",
		message.Problem(77).String():                                                         "Problem(77)",
		message.NotifyAdditionalKeyExchange.String():                                         "ADDITIONAL_KEY_EXCHANGE",
		message.ExchangeIKEFollowupKE.String():                                               "IKE_FOLLOWUP_KE",
		message.TransformType(13).String():                                                   "TransformType(13)",
		message.SPI{1, 2}.String():                                                           "0102000000000000",
		(&message.CheckError{Form: 1, Problem: message.ProblemMissing, Payload: 34}).Error(): "message: IKE_SA_INIT request: mandatory KE payload is missing",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestKeyBits(t *testing.T) {
	for _, c := range []struct {
		attrs []message.Attribute
		bits  int
		known bool
	}{
		{nil, 0, true},
		{[]message.Attribute{{Type: message.AttributeKeyLength, Value: 256}}, 256, true},
		{[]message.Attribute{{Type: message.AttributeKeyLength, Value: 256}, {Type: message.AttributeKeyLength, Value: 128}}, 0, false},
		{[]message.Attribute{{Type: message.AttributeKeyLength, Long: []byte{1, 0}}}, 0, false},
		{[]message.Attribute{{Type: 1, Value: 256}}, 0, false},
	} {
		if bits, known := (message.Transform{Attributes: c.attrs}).KeyBits(); bits != c.bits || known != c.known {
			t.Errorf("%v: %d, %v", c.attrs, bits, known)
		}
	}
}

func TestNotifyData(t *testing.T) {
	n := message.NewRekeySA(message.ProtocolESP, 0x01020304)
	if spi, ok := n.SPI32(); !ok || spi != 0x01020304 {
		t.Errorf("SPI32 = %x, %v", spi, ok)
	}
	n.Protocol = message.ProtocolIKE
	if _, ok := n.SPI32(); ok {
		t.Error("SPI32 of an IKE notify")
	}
	if m, err := message.NewInvalidKE(message.KEECP384).KEMethod(); err != nil || m != message.KEECP384 {
		t.Error(m, err)
	}
	for _, bad := range [][]byte{nil, {0}, {0, 19, 0}} {
		if _, err := message.NewNotify(message.NotifyInvalidKEPayload, bad...).KEMethod(); err == nil {
			t.Errorf("INVALID_KE_PAYLOAD with %x was read", bad)
		}
	}
	n = message.NewSignatureHashAlgorithms(message.HashSHA2256, message.HashIdentity)
	if hs, err := n.HashAlgorithms(); err != nil || len(hs) != 2 || hs[1] != message.HashIdentity {
		t.Error(hs, err)
	}
	n.Data = n.Data[:3]
	if _, err := n.HashAlgorithms(); err == nil {
		t.Error("three octets of hash algorithms were read")
	}
	n.Data = make([]byte, 2*message.MaxHashAlgorithms+2)
	if _, err := n.HashAlgorithms(); err == nil {
		t.Error("65 hash algorithms were read")
	}
	if n.Err() != nil || message.NewNotify(message.NotifyNoProposalChosen).Err() == nil || (*message.Notify)(nil).Err() != nil {
		t.Error("Err: status or nil is an error, or an error is none")
	}
	auth, err := message.NewSignatureAuth([]byte("alg"), []byte("sig"))
	if err != nil {
		t.Fatal(err)
	}
	if alg, sig, err := auth.Signature(); string(alg) != "alg" || string(sig) != "sig" || err != nil {
		t.Error(alg, sig, err)
	}
	for _, bad := range []*message.Auth{{Method: message.AuthDigitalSignature}, {Method: message.AuthDigitalSignature, Data: []byte{2, 1}}, {Method: message.AuthRSA, Data: []byte{0}}} {
		if _, _, err := bad.Signature(); err == nil {
			t.Errorf("signature of %+v was read", bad)
		}
	}
	reqs := &message.CertReq{Data: append(bytes.Repeat([]byte{1}, 20), bytes.Repeat([]byte{2}, 25)...)}
	if got := reqs.Authorities(); len(got) != 2 || got[1][19] != 2 {
		t.Error(got)
	}
}

func TestAppendNATDetection(t *testing.T) {
	i, r := message.SPI{1}, message.SPI{2}
	v4 := netip.MustParseAddrPort("192.0.2.1:500")
	want := binary.BigEndian.AppendUint16(append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0}, 192, 0, 2, 1), 500)
	if got := message.AppendNATDetection(nil, i, r, v4); !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
	mapped := netip.AddrPortFrom(netip.AddrFrom16(v4.Addr().As16()), 500)
	if got := message.AppendNATDetection(nil, i, r, mapped); !bytes.Equal(got, want) {
		t.Errorf("an IPv4-mapped address gives %x, want %x", got, want)
	}
	v6 := netip.MustParseAddrPort("[2001:db8::1]:4500")
	if got := message.AppendNATDetection(nil, i, r, v6); len(got) != 16+16+2 {
		t.Errorf("IPv6: %d octets", len(got))
	}
}

func TestFinders(t *testing.T) {
	ps := build(t, "IDi IDr CERT CERT CERTREQ AUTH SA KE No TSi TSr D V CP EAP N(REKEY) N(STATUS) N(STATUS) N(INVAL_KE) N(ERROR)")
	if ps.IDi().Responder || !ps.IDr().Responder || ps.TSi().Responder || !ps.TSr().Responder {
		t.Error("initiator's and responder's payloads are confused")
	}
	if len(ps.Certs()) != 2 || len(ps.CertReqs()) != 1 || len(ps.Deletes()) != 1 || len(ps.VendorIDs()) != 1 {
		t.Error("lists are incomplete")
	}
	if ps.SA() == nil || ps.KE() == nil || ps.Nonce() == nil || ps.Auth() == nil || ps.CP() == nil || ps.EAP() == nil {
		t.Error("a payload was not found")
	}
	if len(ps.Notifies(40960)) != 2 || ps.Count(message.PayloadNotify) != 5 || !ps.HasNotify(message.NotifyRekeySA) {
		t.Error("notifies are incomplete")
	}
	var peer *message.PeerError
	if err := ps.PeerError(); !errors.As(err, &peer) || peer.Type != message.NotifyInvalidKEPayload {
		t.Errorf("first error notify is %v", err)
	}
	none := message.Payloads{}
	if none.SA() != nil || none.IDi() != nil || none.TSr() != nil || none.Notify(1) != nil || none.PeerError() != nil || none.X509Chain() != nil {
		t.Error("something was found in an empty message")
	}
	ps.Certs()[1].Encoding = message.CertX509Signature
	ps.Certs()[1].Data = []byte("der")
	if c := ps.X509Chain(); len(c) != 1 || string(c[0]) != "der" {
		t.Errorf("X509Chain %q", c)
	}
}

func TestHeaderResponse(t *testing.T) {
	h := message.Header{SPIi: message.SPI{1}, SPIr: message.SPI{2}, Exchange: message.ExchangeInformational, Flags: message.FlagInitiator, MessageID: 7, Minor: 3}
	r := h.Response()
	if !r.IsResponse() || r.FromInitiator() || r.SPIi != h.SPIi || r.MessageID != 7 || r.Minor != 0 || r.Exchange != h.Exchange {
		t.Errorf("%+v", r)
	}
	h.Flags = 0
	if r := h.Response(); !r.FromInitiator() {
		t.Errorf("response to the responder's request: %+v", r)
	}
}
