package blobserver

import (
	"bytes"
	"encoding/xml"
	"maps"
	"net/http"
	"net/url"
	"slices"

	"blobmount/blobcache/blobtest"
)

// tags returns the index tags that x-ms-tags gives to a new version, nil when there are none.
func (q *request) tags() (map[string]string, error) {
	values, err := url.ParseQuery(q.r.Header.Get("x-ms-tags"))
	if err != nil {
		return nil, blobtest.Err("InvalidHeaderValue")
	}
	tags := make(map[string]string, len(values))
	for key, value := range values {
		if len(value) > 1 {
			return nil, blobtest.Err("InvalidTag")
		}
		tags[key] = value[0]
	}
	return tags, nil
}

// getTags is Get Blob Tags.
func (q *request) getTags() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	tags, err := store.Tags(q.blob)
	if err != nil {
		return err
	}
	var body bytes.Buffer
	body.WriteString(xmlHead + "<Tags><TagSet>")
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		body.WriteString("<Tag><Key>")
		escape(&body, key)
		body.WriteString("</Key><Value>")
		escape(&body, tags[key])
		body.WriteString("</Value></Tag>")
	}
	body.WriteString("</TagSet></Tags>")
	q.answerXML(http.StatusOK, body.Bytes())
	return nil
}

// maxTagsBody is more than ten tags of 128 and 256 characters need.
const maxTagsBody = 64 << 10

// setTags is Set Blob Tags.
func (q *request) setTags() error {
	store, err := q.store()
	if err != nil {
		return err
	}
	body, err := q.body(maxTagsBody)
	if err != nil {
		return err
	}
	var list struct {
		Tags []struct {
			Key, Value string
		} `xml:"TagSet>Tag"`
	}
	if xml.Unmarshal(body, &list) != nil {
		return blobtest.Err("InvalidXmlDocument")
	}
	tags := map[string]string{}
	for _, tag := range list.Tags {
		if _, twice := tags[tag.Key]; twice {
			return blobtest.Err("InvalidTag")
		}
		tags[tag.Key] = tag.Value
	}
	if err := store.SetTags(q.blob, tags); err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusNoContent)
	return nil
}
