package sbom

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strings"
	"time"
)

// PredicateType is that of SPDX documents in in-toto statements.
const PredicateType = "https://spdx.dev/Document"

type document struct {
	SPDXID        string         `json:"SPDXID"`
	SPDXVersion   string         `json:"spdxVersion"`
	DataLicense   string         `json:"dataLicense"`
	Name          string         `json:"name"`
	Namespace     string         `json:"documentNamespace"`
	CreationInfo  creation       `json:"creationInfo"`
	Comment       string         `json:"comment,omitempty"`
	Packages      []spdxPackage  `json:"packages"`
	Relationships []relationship `json:"relationships"`
}

type creation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	SPDXID           string     `json:"SPDXID"`
	Name             string     `json:"name"`
	VersionInfo      string     `json:"versionInfo,omitempty"`
	Supplier         string     `json:"supplier,omitempty"`
	DownloadLocation string     `json:"downloadLocation"`
	FilesAnalyzed    bool       `json:"filesAnalyzed"`
	SourceInfo       string     `json:"sourceInfo,omitempty"`
	LicenseConcluded string     `json:"licenseConcluded"`
	LicenseDeclared  string     `json:"licenseDeclared"`
	LicenseComments  string     `json:"licenseComments,omitempty"`
	CopyrightText    string     `json:"copyrightText"`
	Purpose          string     `json:"primaryPackagePurpose,omitempty"`
	ExternalRefs     []external `json:"externalRefs,omitempty"`
}

type external struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type relationship struct {
	Element string `json:"spdxElementId"`
	Related string `json:"relatedSpdxElement"`
	Type    string `json:"relationshipType"`
}

const (
	rootID   = "SPDXRef-image"
	noAssert = "NOASSERTION"
)

// SPDX writes the list as a document about an image. The same list, name and
// time give the same bytes.
func (l List) SPDX(name string, at time.Time) ([]byte, error) {
	d := document{
		SPDXID: "SPDXRef-DOCUMENT", SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", Name: name,
		CreationInfo: creation{Created: at.UTC().Format(time.RFC3339), Creators: []string{"Tool: naru"}},
		Comment:      strings.Join(l.Warnings, "\n"),
		Packages: []spdxPackage{{
			SPDXID: rootID, Name: name, DownloadLocation: noAssert, LicenseConcluded: noAssert, LicenseDeclared: noAssert, CopyrightText: noAssert, Purpose: "CONTAINER",
		}},
		Relationships: []relationship{{"SPDXRef-DOCUMENT", rootID, "DESCRIBES"}},
	}
	all := sha256.New()
	all.Write([]byte(name)) // a hash never fails
	for _, p := range l.Packages {
		purl := p.purl(l)
		sum := sha256.Sum256([]byte(purl))
		all.Write(sum[:])
		id := "SPDXRef-Package-" + p.Kind + "-" + hex.EncodeToString(sum[:8])
		d.Packages = append(d.Packages, p.spdx(id, purl))
		d.Relationships = append(d.Relationships, relationship{rootID, id, "CONTAINS"})
	}
	d.Namespace = "https://spdx.org/spdxdocs/naru-" + hex.EncodeToString(all.Sum(nil)[:16])
	return json.Marshal(d)
}

func (p Package) spdx(id, purl string) spdxPackage {
	s := spdxPackage{
		SPDXID: id, Name: p.Name, VersionInfo: p.Version, DownloadLocation: noAssert, SourceInfo: "found in /" + p.Found,
		LicenseConcluded: noAssert, LicenseDeclared: noAssert, CopyrightText: noAssert,
		ExternalRefs: []external{{"PACKAGE-MANAGER", "purl", purl}},
	}
	if p.Supplier != "" {
		s.Supplier = "Organization: " + p.Supplier
	}
	if p.License != "" { // records use words of their own, which need not be SPDX's
		s.LicenseComments = "declared as: " + p.License
	}
	return s
}

// purl is the package URL (github.com/package-url/purl-spec).
func (p Package) purl(l List) string {
	name := p.Name
	qualifiers := url.Values{}
	switch p.Kind {
	case "deb", "apk":
		distro := l.Distro
		if distro == "" {
			distro = map[string]string{"deb": "debian", "apk": "alpine"}[p.Kind]
		}
		name = distro + "/" + name
		if p.Arch != "" {
			qualifiers.Set("arch", p.Arch)
		}
		if l.Release != "" {
			qualifiers.Set("distro", distro+"-"+l.Release)
		}
	case "pypi":
		name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		parts = append(parts, strings.ReplaceAll(url.PathEscape(part), "@", "%40"))
	}
	text := "pkg:" + p.Kind + "/" + strings.Join(parts, "/")
	if p.Version != "" {
		text += "@" + strings.ReplaceAll(url.PathEscape(p.Version), ":", "%3A")
	}
	if len(qualifiers) > 0 {
		text += "?" + qualifiers.Encode()
	}
	return text
}
