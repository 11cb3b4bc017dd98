<?php
// WordPress' own installation, without a browser, and ten posts. Run by prepare.sh.
$_SERVER['HTTP_HOST'] = 'wordpress.localhost';
$_SERVER['REQUEST_URI'] = '/';
define('WP_INSTALLING', true);
require '/usr/share/wordpress/wp-load.php';
// Instead of a letter to the administrator.
function wp_new_blog_notification($title, $url, $user, $password)
{
}
require_once ABSPATH . 'wp-admin/includes/upgrade.php';

if (!is_blog_installed()) {
    wp_install('Hakobu', 'admin', 'admin@wordpress.localhost', false, '', wp_generate_password(24));
    update_option('permalink_structure', '/%postname%/');
    flush_rewrite_rules();
}
$texts = [
    'Passed through on the way north.',
    'The tea was good, the view better.',
    'Came back a year later: nothing has moved.',
    'Left early, before the rain.',
    'We shall tell our friends.',
];
for ($number = (int) wp_count_posts()->publish + 1; $number <= 10; $number++) {
    wp_insert_post([
        'post_title' => "Day $number",
        'post_content' => str_repeat('<p>' . $texts[$number % count($texts)] . "</p>\n", 5),
        'post_status' => 'publish',
        'post_author' => 1,
    ], true);
}
