package azure

import (
	"encoding/xml"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"blobmount/blobcache/blob"
)

// aPage is a listing as the service writes it, with all that is unusual about one.
const aPage = "\ufeff" + `<?xml version="1.0" encoding="utf-8"?>
<EnumerationResults ServiceEndpoint="https://a.blob.core.windows.net/" ContainerName='d>"' >
<Prefix>p/</Prefix><Delimiter>/</Delimiter>
<Blobs>
 <Blob>
  <Name>p/a &amp;&lt;b&gt; &quot;&apos;&#228;&#x1F600;</Name>
  <VersionId>2026-01-02T03:04:05.0000000Z</VersionId><IsCurrentVersion>true</IsCurrentVersion>
  <Properties>
   <Creation-Time>Fri, 02 Jan 2026 03:04:05 GMT</Creation-Time><Last-Modified>Sat, 03 Jan 2026 03:04:05 GMT</Last-Modified>
   <Etag>0x8DE</Etag><Content-Length>25000</Content-Length><Content-Type>text/plain</Content-Type>
   <Content-Encoding>gzip</Content-Encoding><Content-Language>de</Content-Language><Content-CRC64 />
   <Content-MD5>1B2M2Y8AsgTpgAmY7PhCfg==</Content-MD5><Cache-Control>no-cache</Cache-Control>
   <Content-Disposition>attachment; filename="a&amp;b"</Content-Disposition><BlobType>AppendBlob</BlobType>
   <AccessTier>Cool</AccessTier><AccessTierInferred>true</AccessTierInferred><LeaseStatus>unlocked</LeaseStatus>
   <TagCount>3</TagCount><ServerEncrypted>true</ServerEncrypted>
  </Properties>
  <Metadata><Hdi_isfolder>true</Hdi_isfolder><note>a&#xD;&#xA;b` + "\r\nc\r" + `</note><none></none></Metadata><OrMetadata />
 </Blob>
 <Blob><Name Encoded="true">p/%01%EF%BF%BE+%2B</Name><Properties><Etag>"0x1"</Etag><Last-Modified /><Content-Length>0</Content-Length>
  <Content-Type /><Content-MD5 /><BlobType>BlockBlob</BlobType><AccessTier>Cool</AccessTier></Properties><Metadata/></Blob>
 <BlobPrefix><Name>p/sub/</Name></BlobPrefix><BlobPrefix><Name Encoded="true">p/%02/</Name></BlobPrefix>
</Blobs>
<NextMarker>2!&amp;</NextMarker></EnumerationResults>`

// sdkPage reads a listing as the SDK does.
func sdkPage(doc string) (page blob.Page, err error) {
	var r container.ListBlobsHierarchySegmentResponse
	if err := xml.Unmarshal([]byte(strings.TrimPrefix(doc, "\ufeff")), &r); err != nil {
		return page, err
	}
	page.Next = text(r.NextMarker)
	for _, i := range r.Segment.BlobItems {
		p := value(i.Properties)
		b := blob.Properties{
			Name: text(i.Name), ETag: etag(p.ETag), Size: value(p.ContentLength), Modified: value(p.LastModified).UTC(),
			Created: value(p.CreationTime).UTC(), Kind: kind(p.BlobType), Tier: text(p.AccessTier), VersionID: text(i.VersionID),
			Metadata: metadata(i.Metadata), TierInferred: value(p.AccessTierInferred), TagCount: int(value(p.TagCount)),
			Headers: blob.Headers{
				ContentType: text(p.ContentType), ContentEncoding: text(p.ContentEncoding), ContentLanguage: text(p.ContentLanguage),
				ContentDisposition: text(p.ContentDisposition), CacheControl: text(p.CacheControl),
			},
		}
		if len(p.ContentMD5) > 0 {
			b.Headers.ContentMD5 = p.ContentMD5
		}
		page.Blobs = append(page.Blobs, b)
	}
	for _, p := range r.Segment.BlobPrefixes {
		page.Prefixes = append(page.Prefixes, text(p.Name))
	}
	return page, nil
}

// TestPageIsReadAsTheSDKReadsIt: the scanner knows less XML than the SDK's, but no listing tells.
func TestPageIsReadAsTheSDKReadsIt(t *testing.T) {
	for _, doc := range []string{
		aPage,
		strings.ReplaceAll(aPage, "\n", "\r\n"),
		`<EnumerationResults><Blobs></Blobs><NextMarker></NextMarker></EnumerationResults>`,
		`<EnumerationResults><Blobs /><NextMarker /></EnumerationResults>`,
	} {
		want, err := sdkPage(doc)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readPage([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Blobs) != len(want.Blobs) {
			t.Fatalf("%d blobs, want %d", len(got.Blobs), len(want.Blobs))
		}
		for i := range got.Blobs {
			if !reflect.DeepEqual(got.Blobs[i], want.Blobs[i]) {
				t.Errorf("blob %d:\n got %+v\nwant %+v", i, got.Blobs[i], want.Blobs[i])
			}
		}
		if got.Next != want.Next || fmt.Sprint(got.Prefixes) != fmt.Sprint(want.Prefixes) {
			t.Errorf("next %q, prefixes %q, want %q, %q", got.Next, got.Prefixes, want.Next, want.Prefixes)
		}
	}
}

// TestBrokenPage: a listing that is not whole must not look like a directory with fewer names.
func TestBrokenPage(t *testing.T) {
	for n := range len(aPage) {
		if _, err := readPage([]byte(aPage[:n])); err == nil {
			t.Fatalf("the first %d of %d bytes are read without an error", n, len(aPage))
		}
	}
	for _, change := range [][2]string{
		{"</Blobs>", "</Blob>"}, {"</Blobs>", ""}, {"EnumerationResults", "Error"}, {"&amp;", "&nothing;"}, {"&amp;", "&"},
		{"&#228;", "&#xD800;"}, {"&#228;", "&228;"}, {"25000", "many"}, {"Fri, 02", "Friday"}, {"1B2M", "1B2%"}, {"%01", "%0"},
		{"<Prefix>", "<![CDATA[<Prefix>"}, {"text/plain", "text/<b>plain</b>"}, {"text/plain", "\xff"},
	} {
		doc := strings.ReplaceAll(aPage, change[0], change[1])
		if doc == aPage {
			t.Fatalf("%q is not in the page", change[0])
		}
		if _, err := readPage([]byte(doc)); err == nil {
			t.Errorf("a page with %q for %q is read without an error", change[1], change[0])
		}
	}
}

func manyBlobs(n int) string {
	i := strings.Index(aPage, "<Blob>")
	j := strings.Index(aPage, "</Blob>") + len("</Blob>")
	return aPage[:i] + strings.Repeat(aPage[i:j], n) + aPage[j:]
}

func BenchmarkPage(b *testing.B) {
	const n = 5000
	doc := manyBlobs(n)
	for _, way := range []struct {
		name string
		read func() error
	}{
		{"ours", func() error { _, err := readPage([]byte(doc)); return err }},
		{"sdk", func() error { _, err := sdkPage(doc); return err }},
	} {
		b.Run(way.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := way.read(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/n, "us/blob")
		})
	}
}
