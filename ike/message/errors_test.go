package message_test

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"wardgate/ike/message"
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// Each kind of malformed payload is refused with words that say what is wrong.
func TestBadPayloads(t *testing.T) {
	nonce := strings.Repeat("aa", 16)
	for _, c := range []struct {
		name  string
		first message.PayloadType
		chain string // hexadecimal
		want  string // part of the error
	}{
		{"chain goes on, octets do not", 33, "", "octets left for the generic payload header is 0; want at least 1"},
		{"half a generic header", 40, "0000", "octets left for the generic payload header is 0; want at least 2"},
		{"payload length below 4", 40, "00000003", "payload length is 3; want at least 4"},
		{"payload length above what is there", 40, "00000008 aaaa", "octets left for payload is 2; want at least 4"},
		{"octets after the last payload", 41, "00000008 00004000 ff", "octets after the last payload is 1"},
		{"octets though there is no payload", 0, "00", "octets after the last payload is 1"},
		{"SK inside SK", 46, "00000004", "nesting depth of the Encrypted payload is 2"},
		{"payload after SK", 46, "29000004 00000008 00004000", "octets after the Encrypted payload is 8"},

		{"SA without proposals", 33, "00000004", "number of proposals is 0"},
		{"proposal length too small", 33, "0000000c 00000003 01010000", "proposal length is 3"},
		{"proposal longer than payload", 33, "0000000c 00000010 01010000", "octets left for proposal is 4; want at least 12"},
		{"proposal without its SPI", 33, "0000000c 00000008 01030400", "octets left for the proposal's SPI is 0; want at least 4"},
		{"proposal says more follow", 33, "0000000c 02000008 01010000", "proposal's last substructure field is 2; want 0"},
		{"proposal says it is the last", 33, "00000014 00000008 01010000 00000008 02010000", "proposal's last substructure field is 0; want 2"},
		{"more octets than transforms", 33, "00000014 00000010 01010000 00000008 0100000c", "octets after the last field is 8"},
		{"transform length too small", 33, "00000014 00000010 01010001 00000007 0100000c", "octets left for a transform"},
		{"transform says more follow", 33, "00000014 00000010 01010001 03000008 0100000c", "transform's last substructure field is 3; want 0"},
		{"129 transforms", 33, "0000000c 00000008 01010081", "129 transforms in a proposal; at most 128"},
		{"half an attribute", 33, "00000016 00000012 01010001 0000000a 0100000c 800e", "octets left for an attribute is 0; want at least 2"},
		{"attribute value too long", 33, "00000018 00000014 01010001 0000000c 0100000c 000e0004", "octets left for an attribute's value is 0; want at least 4"},

		{"KE too short", 34, "00000007 001300", "octets left for the reserved octets is 1"},
		{"ID too short", 35, "00000006 0200", "octets left for the reserved octets is 1; want at least 3"},
		{"ID without data", 36, "00000008 02000000", "IDr payload: length of the identification data is 0"},
		{"IPv4 ID of 3 octets", 35, "0000000b 01000000 010203", "length of an ID_IPV4_ADDR is 3; want 4"},
		{"IPv6 ID of 4 octets", 35, "0000000c 05000000 01020304", "length of an ID_IPV6_ADDR is 4; want 16"},
		{"empty CERT", 37, "00000004", "octets left for the certificate encoding is 0"},
		{"empty CERTREQ", 38, "00000004", "octets left for the certificate encoding is 0"},
		{"AUTH too short", 39, "00000007 020000", "octets left for the reserved octets is 2; want at least 3"},
		{"nonce of 15 octets", 40, "00000013" + nonce[2:], "nonce length is 15; want 16 to 256"},
		{"nonce of 257 octets", 40, "00000105" + strings.Repeat("aa", 257), "nonce length is 257"},
		{"notify without its SPI", 41, "00000008 03044009", "octets left for the SPI is 0; want at least 4"},
		{"delete of an unknown protocol", 42, "00000008 09000000", "protocol ID is 9; want 1 (IKE), 2 (AH) or 3 (ESP)"},
		{"delete of the IKE SA with SPIs", 42, "00000010 01080001 0102030405060708", "SPI size is 8; want 0"},
		{"delete of the IKE SA, one nothing", 42, "00000008 01000001", "number of SPIs is 1; want 0"},
		{"delete ESP with SPIs of 8 octets", 42, "00000010 03080001 0102030405060708", "SPI size is 8; want 4"},
		{"delete with fewer SPIs than said", 42, "0000000c 03040002 01020304", "octets of SPIs is 4; want 8"},
		{"delete with more SPIs than said", 42, "0000000c 03040000 01020304", "octets of SPIs is 4; want 0"},
		{"no selectors", 44, "00000008 00000000", "number of selectors is 0"},
		{"selector missing", 45, "00000008 01000000", "octets left for a selector is 0"},
		{"selector too short", 44, "0000000c 01000000 07000004", "octets left for the start port is 0"},
		{"selector too long", 44, "00000019 01000000 07000011 0000ffff 0a000000 0a0000ff 00", "octets after the last field is 1"},
		{"more selectors than said", 44, "00000028 01000000 07000010 0000ffff 0a000000 0a0000ff 07000010 0000ffff 0a000000 0a0000ff", "octets after the last field is 16"},
		{"addresses in the wrong order", 44, "00000018 01000000 07000010 0000ffff 0a000001 0a000000", "starting address above the ending address"},
		{"ports in the wrong order", 44, "00000018 01000000 07000010 00020001 0a000001 0a000001", "start port is 2; want at most the end port 1"},
		{"CP attribute too long", 47, "0000000c 01000000 00010004", "octets left for an attribute's value is 0; want at least 4"},
		{"EAP length", 48, "00000008 01010005", "EAP length is 5; want the 4 octets of the payload"},
		{"EAP too short", 48, "00000007 010100", "octets left for the EAP length"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ps, err := message.ParsePayloads(c.first, unhex(c.chain))
			if err == nil {
				t.Fatalf("parsed: %v", ps)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q, want %q in it", err, c.want)
			}
			if !errors.Is(err, message.ErrSyntax) {
				t.Errorf("%v is not ErrSyntax", err)
			}
			if n := message.NotifyFor(err); n == nil || n.Type != message.NotifyInvalidSyntax {
				t.Errorf("answered with %+v, want INVALID_SYNTAX", n)
			}
		})
	}
}

func TestBadOuter(t *testing.T) {
	const spis = "0102030405060708 1112131415161718"
	for _, c := range []struct{ name, datagram, want string }{
		{"empty", "", "length of the datagram is 0"},
		{"27 octets", spis + "00202508 00000000 000000", "length of the datagram is 27"},
		{"length too small", spis + "00202508 00000000 0000001b", "length field of the IKE header is 27; want the 28"},
		{"length too large", spis + "00202508 00000000 0000001d", "length field of the IKE header is 29; want the 28"},
		{"octets behind the message", spis + "00202508 00000000 0000001c 00", "length field of the IKE header is 28; want the 29"},
		{"IKEv1", spis + "01100200 00000000 0000001c", "IKE version is 1.0; want 2"},
		{"IKEv3", spis + "21302208 00000000 0000001c", "IKE version is 3.0; want 2"},
		{"fragment 0", spis + "35202508 00000001 00000024 00000008 00000001", "fragment number is 0; want 1 to 1"},
		{"fragment 2 of 1", spis + "35202508 00000001 00000024 00000008 00020001", "fragment number is 2; want 1 to 1"},
		{"fragment of 0", spis + "35202508 00000001 00000024 00000008 00010000", "total of fragments is 0"},
		{"fragment of 256", spis + "35202508 00000001 00000024 00000008 00010100", "256 fragments; at most 255"},
		{"fragment 2 with next payload", spis + "35202508 00000001 00000024 29000008 00020002", "next payload field of a later fragment is 41"},
		{"fragment without numbers", spis + "35202508 00000001 00000020 00000004", "octets left for the fragment number is 0"},
	} {
		_, err := message.Parse(unhex(c.datagram))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.name, err, c.want)
		}
	}
	if _, err := message.Parse(make([]byte, message.MaxMessage+1)); !errors.Is(err, message.ErrSyntax) {
		t.Errorf("65536 octets: %v", err)
	}
	many := make(message.Payloads, message.MaxPayloads+1)
	for i := range many {
		many[i] = message.NewNotify(message.NotifyInitialContact)
	}
	b, err := message.Encode(message.Header{}, many)
	if err != nil {
		t.Fatal(err)
	}
	var limit *message.LimitError
	if _, err := message.Parse(b); !errors.As(err, &limit) || limit.Max != message.MaxPayloads {
		t.Errorf("129 payloads: %v", err)
	}
}

// RFC 7296, section 2.5: unknown critical payloads, versions.
func TestNotifyFor(t *testing.T) {
	_, err := message.ParsePayloads(200, unhex("29 80 0005 ff 00000008 00004000"))
	var critical *message.UnsupportedCriticalError
	if !errors.As(err, &critical) || critical.Type != 200 {
		t.Fatalf("unknown critical payload: %v", err)
	}
	if n := message.NotifyFor(err); n.Type != message.NotifyUnsupportedCriticalPayload || len(n.Data) != 1 || n.Data[0] != 200 {
		t.Errorf("answered with %+v", n)
	}
	ps, err := message.ParsePayloads(200, unhex("29 00 0005 ff 00000008 00004000"))
	if err != nil || len(ps) != 2 || !ps.HasNotify(message.NotifyInitialContact) {
		t.Errorf("unknown payload that is not critical: %v, %v", ps, err)
	}
	ps, err = message.ParsePayloads(41, unhex("00 80 0008 00004000"))
	if err != nil || !ps[0].IsCritical() {
		t.Errorf("a known payload with the critical flag: %v, %v", ps, err)
	}

	_, err = message.Parse(unhex("0102030405060708 0000000000000000 21302208 00000000 0000001c"))
	if n := message.NotifyFor(err); n == nil || n.Type != message.NotifyInvalidMajorVersion {
		t.Errorf("version 3 answered with %+v", n)
	}
	var version *message.VersionError
	if !errors.As(err, &version) || version.Header.SPIi.String() != "0102030405060708" {
		t.Errorf("version 3: %v without the header", err)
	}
	_, err = message.Parse(unhex("0102030405060708 0000000000000000 21102208 00000000 0000001c"))
	if n := message.NotifyFor(err); n != nil {
		t.Errorf("IKEv1 answered with %+v, want silence", n)
	}
	if n := message.NotifyFor(message.ErrNotAuthentic); n != nil {
		t.Errorf("a forged message answered with %+v, want silence", n)
	}
	if n := message.NotifyFor(&message.CheckError{}); n == nil || n.Type != message.NotifyInvalidSyntax {
		t.Errorf("CheckError answered with %+v", n)
	}
}

// Values that do not fit their fields are refused, not cut.
func TestEncodeErrors(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1")
	long := make([]byte, 65536)
	for name, p := range map[string]message.Payload{
		"no proposals":               &message.SA{},
		"65 proposals":               &message.SA{Proposals: make([]message.Proposal, 65)},
		"129 transforms":             &message.SA{Proposals: []message.Proposal{{Transforms: make([]message.Transform, 129)}}},
		"9 attributes":               &message.SA{Proposals: []message.Proposal{{Transforms: []message.Transform{{Attributes: make([]message.Attribute, 9)}}}}},
		"16-bit attribute type":      &message.SA{Proposals: []message.Proposal{{Transforms: []message.Transform{{Attributes: []message.Attribute{{Type: 0x8000}}}}}}},
		"attribute too long":         &message.SA{Proposals: []message.Proposal{{Transforms: []message.Transform{{Attributes: []message.Attribute{{Long: long}}}}}}},
		"transform too long":         &message.SA{Proposals: []message.Proposal{{Transforms: []message.Transform{{Attributes: []message.Attribute{{Long: long[:65530]}}}}}}},
		"SPI of 256 octets":          &message.SA{Proposals: []message.Proposal{{SPI: long[:256]}}},
		"notify SPI of 256 octets":   &message.Notify{SPI: long[:256]},
		"payload too long":           &message.KE{Data: long},
		"short nonce":                &message.Nonce{Data: long[:15]},
		"long nonce":                 &message.Nonce{Data: long[:257]},
		"delete of no protocol":      &message.Delete{},
		"delete IKE SA with SPI":     &message.Delete{Protocol: message.ProtocolIKE, SPIs: []uint32{1}},
		"delete of 1025":             &message.Delete{Protocol: message.ProtocolESP, SPIs: make([]uint32, 1025)},
		"no selectors":               message.NewTSi(),
		"256 selectors":              message.NewTSr(make([]message.Selector, 256)...),
		"selector without address":   message.NewTSi(message.Selector{Type: message.TSIPv4AddrRange}),
		"selector of two families":   message.NewTSi(message.NewSelector(0, 0, 65535, v4, v6)),
		"selector in wrong order":    message.NewTSi(message.NewSelector(0, 0, 65535, v4.Next(), v4)),
		"selector ports wrong order": message.NewTSi(message.NewSelector(6, 2, 1, v4, v4)),
		"129 CP attributes":          &message.CP{Attributes: make([]message.CfgAttribute, 129)},
		"16-bit CP attribute type":   &message.CP{Attributes: []message.CfgAttribute{{Type: 0x8000}}},
		"CP attribute too long":      &message.CP{Attributes: []message.CfgAttribute{{Value: long}}},
		"EAP too long":               &message.EAP{Data: long},
	} {
		_, _, err := message.AppendPayloads(nil, message.Payloads{p})
		var encode *message.EncodeError
		if !errors.As(err, &encode) {
			t.Errorf("%s: %v, want *EncodeError", name, err)
		}
	}
	if _, err := message.Encode(message.Header{}, message.Payloads{&message.KE{Data: long[:40000]}, &message.KE{Data: long[:40000]}}); err == nil {
		t.Error("a message of 80000 octets was encoded")
	}
	if _, err := message.NewSignatureAuth(long[:256], nil); err == nil {
		t.Error("an AlgorithmIdentifier of 256 octets was encoded")
	}
}

func TestCheckOuter(t *testing.T) {
	sealed := &message.Encrypted{Sealed: []byte{1}}
	notify := message.Payloads{message.NewNotify(message.NotifyInvalidIKESPI)}
	for _, c := range []struct {
		name string
		m    message.Message
		ok   bool
		want error
	}{
		{"IKE_SA_INIT in clear", message.Message{Header: message.Header{Exchange: message.ExchangeIKESAInit}, Payloads: notify}, true, nil},
		{"IKE_SA_INIT encrypted", message.Message{Header: message.Header{Exchange: message.ExchangeIKESAInit}, Encrypted: sealed}, false, nil},
		{"IKE_AUTH encrypted", message.Message{Header: message.Header{Exchange: message.ExchangeIKEAuth}, Encrypted: sealed}, true, nil},
		{"IKE_AUTH in clear", message.Message{Header: message.Header{Exchange: message.ExchangeIKEAuth}, Payloads: notify}, false, message.ErrNotEncrypted},
		{"INFORMATIONAL with both", message.Message{Header: message.Header{Exchange: message.ExchangeInformational}, Payloads: notify, Encrypted: sealed}, false, message.ErrClearPayload},
		{"unknown exchange in clear", message.Message{Header: message.Header{Exchange: 240}, Payloads: notify}, false, message.ErrNotEncrypted},
	} {
		err := c.m.CheckOuter()
		if (err == nil) != c.ok || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	m := message.Message{}
	if _, err := m.Open(testGCM); !errors.Is(err, message.ErrNotEncrypted) {
		t.Errorf("Open without SK: %v", err)
	}
	m.Encrypted = sealed
	if _, err := m.Open(testGCM); !errors.Is(err, message.ErrNotEncrypted) {
		t.Errorf("Open of a message that was not parsed: %v", err)
	}
	if _, err := m.OpenFragment(testGCM); !errors.Is(err, message.ErrNotFragment) {
		t.Errorf("OpenFragment of SK: %v", err)
	}
	m.Encrypted = &message.Encrypted{Number: 1, Total: 2}
	if _, err := m.Open(testGCM); !errors.Is(err, message.ErrIsFragment) {
		t.Errorf("Open of SKF: %v", err)
	}
}
