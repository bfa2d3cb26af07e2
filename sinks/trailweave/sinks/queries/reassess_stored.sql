-- How far load has stored what reassessments wrote.
SELECT partition AS lane, max(offset) AS offset FROM chains WHERE w = 'reassess' GROUP BY partition
